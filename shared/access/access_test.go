package access

import (
	"strings"
	"testing"
)

func TestValidateNamesTheFaultySetting(t *testing.T) {
	const several = "is for several tenants"
	good := "https://login.microsoftonline.com/8eaef023-2b34-4da1-9baa-8bc8c9d6a490/v2.0"
	for _, c := range []struct{ issuer, discovery, want string }{
		{"", "", ""},
		{good, "", ""},
		{"https://sts.windows.net/8eaef023-2b34-4da1-9baa-8bc8c9d6a490/", "", ""},
		{"https://login.microsoftonline.us/8eaef023-2b34-4da1-9baa-8bc8c9d6a490/v2.0", "", ""},
		{"https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0", "", ""},
		{"https://keycloak.example/realms/common", "", ""},
		{"https://id.example/common", "", ""}, // not of Entra ID
		{good, "https://contoso.b2clogin.com/contoso.onmicrosoft.com/v2.0/.well-known/openid-configuration?p=b2c_1_signin", ""},
		{good, "https://contoso.ciamlogin.com/contoso.onmicrosoft.com/v2.0", ""},

		{"http://login.example.com", "", "in iss"},
		{"login", "", "in iss"},
		{"https://login.example.com?p=x", "", "in iss"},
		{"https://mia@login.example.com", "", "in iss"},
		{"https://login.microsoftonline.com/{tenantid}/v2.0", "", several},
		{"https://login.microsoftonline.com/%7Btenantid%7D/v2.0", "", several},
		{"https://sts.windows.net/{tenantid}/", "", several},
		{"https://{tenant}.ciamlogin.com/v2.0", "", "in iss"},
		{"https://login.microsoftonline.com/common/v2.0", "", several},
		{"https://login.microsoftonline.com/Organizations/v2.0", "", several},
		{"https://login.microsoftonline.com/consumers/v2.0", "", "9188040d-6c67-4c5b-b112-36a304b66dad"},
		{"https://login.partner.microsoftonline.cn/common/v2.0", "", several},
		{"https://sts.windows.net/common/", "", several},

		{good, "http://contoso.b2clogin.com/x", "OIDC_DISCOVERY_URL"},
		{good, "/contoso", "OIDC_DISCOVERY_URL"},
		{good, "https://contoso.b2clogin.com/#x", "OIDC_DISCOVERY_URL"},
		{good, "https://mia:secret@contoso.b2clogin.com/", "OIDC_DISCOVERY_URL"},
		{good, "https://login.microsoftonline.com/common/v2.0/.well-known/openid-configuration", several},
		{"", "https://contoso.b2clogin.com/x", "OIDC_DISCOVERY_URL is set without OIDC_ISSUER"},
	} {
		err := Policy{Issuer: c.issuer, DiscoveryURL: c.discovery, ReadAccess: Own}.Validate()
		if c.want == "" {
			if err != nil {
				t.Errorf("%q, %q: %v", c.issuer, c.discovery, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q, %q: %v; want %s", c.issuer, c.discovery, err, c.want)
		}
	}
}

func TestConfigurationURLIsWellKnown(t *testing.T) {
	const path = "/.well-known/openid-configuration"
	for _, c := range []struct{ issuer, discovery, want string }{
		{"https://id.example", "", "https://id.example" + path},
		{"https://id.example/", "", "https://id.example" + path},
		{"https://id.example/a/v2.0", "", "https://id.example/a/v2.0" + path},
		{"https://id.example/a%2Fb/", "", "https://id.example/a%2Fb" + path},
		{"https://id.example", "https://b2c.example/POLICY/v2.0/", "https://b2c.example/POLICY/v2.0" + path},
		{"https://id.example", "https://b2c.example/v2.0" + path, "https://b2c.example/v2.0" + path},
		{"https://id.example", "https://b2c.example/v2.0" + path + "?p=a", "https://b2c.example/v2.0" + path + "?p=a"},
		{"https://id.example", "https://b2c.example/v2.0?p=a", "https://b2c.example/v2.0" + path + "?p=a"},
		{"https://id.example", "https://id.example/.well-known/oauth-authorization-server/a", "https://id.example/.well-known/oauth-authorization-server/a"},
	} {
		if got := (Policy{Issuer: c.issuer, DiscoveryURL: c.discovery}).ConfigurationURL(); got != c.want {
			t.Errorf("%q, %q: %s; want %s", c.issuer, c.discovery, got, c.want)
		}
	}
}
