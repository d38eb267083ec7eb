package web

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"cats.example/shared/config"
)

func parseOptions(settings ...string) (o Options, err error) {
	err = config.Parse(&o, settings)
	return o, errors.Join(err, o.Validate())
}

func TestInvalidOptionsAreRejected(t *testing.T) {
	for name, values := range map[string][]string{
		"CORS_ORIGINS": {
			"*", "https://*.example.com", "cats.example.com", "https://cats.example.com/", "https://cats.example.com/x", "null", "HTTPS://cats.example.com",
			"https://Cats.example.com", "ftp://x", "https://u@x", "https://x?y", "https://", "https://[:", "https://[g]", "https://x:y", "https://x:", "https://x\ny",
		},
		"TRUSTED_PROXIES": {"10.0.0.1/8", "10.0.0.0/33", "10.0.0", "cats.example.com", "fe80::1%eth0", "*", "10.0.0.0/8 192.0.2.1", "::ffff:10.0.0.0/104"},
		"OIDC_CLIENT_ID":  {"page"}, // without OIDC_ISSUER
		"OIDC_SCOPE":      {"api://x/.default"},
	} {
		for _, value := range values {
			settings := []string{name + "=" + value}
			if name == "OIDC_SCOPE" {
				settings = append(settings, "OIDC_ISSUER=https://login.example.com", "OIDC_CLIENT_ID=page")
			}
			if _, err := parseOptions(settings...); err == nil || !strings.Contains(err.Error(), name+" is") {
				t.Errorf("%q: %v", settings, err)
			}
		}
	}
	o, err := parseOptions("CORS_ORIGINS=https://cats.example.com,http://localhost:5173,http://[::1]:80,https://a_b.example, https://x ", "TRUSTED_PROXIES=192.0.2.1,::1, 10.0.0.0/8,::ffff:192.0.2.1,0.0.0.0/0")
	if got := fmt.Sprint(o.TrustedProxies); err != nil || len(o.CORSOrigins) != 5 || got != "[192.0.2.1/32 ::1/128 10.0.0.0/8 192.0.2.1/32 0.0.0.0/0]" {
		t.Errorf("valid options: %q, %s, %v", o.CORSOrigins, got, err)
	}
}
