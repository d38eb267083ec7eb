package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"cats.example/shared/config"
)

func parseOptions(settings ...string) (o Options, err error) {
	err = config.Parse(&o, settings)
	return o, errors.Join(err, o.Validate())
}

func TestInvalidOptionsAreRejected(t *testing.T) {
	text, err := os.ReadFile("testdata/options-invalid.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		settings := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		name, _, _ := strings.Cut(settings[0], "=")
		if _, err := parseOptions(settings...); err == nil || !strings.Contains(err.Error(), name+" is") {
			t.Errorf("%q: %v", settings, err)
		}
	}
	if _, err := parseOptions("CORS_ORIGINS=https://x\ny"); err == nil {
		t.Error("an origin of two lines is accepted")
	}
	o, err := parseOptions("CORS_ORIGINS=https://cats.example.com,http://localhost:5173,http://[::1]:80,https://a_b.example, https://x ",
		"TRUSTED_PROXIES=192.0.2.1,::1, 10.0.0.0/8,::ffff:192.0.2.1,0.0.0.0/0")
	if got := fmt.Sprint(o.TrustedProxies); err != nil || len(o.CORSOrigins) != 5 || got != "[192.0.2.1/32 ::1/128 10.0.0.0/8 192.0.2.1/32 0.0.0.0/0]" {
		t.Errorf("valid options: %q, %s, %v", o.CORSOrigins, got, err)
	}
}

func TestClientIPIsTheLastUntrustedAddress(t *testing.T) {
	text, err := os.ReadFile("testdata/forwarded.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name         string
		Peer, Client netip.Addr
		Forwarded    []string
	}
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	trusted := must(parseOptions("TRUSTED_PROXIES=10.0.0.0/8, 2001:db8:ffff::/48,192.0.2.1")).TrustedProxies
	for _, c := range cases {
		if got := clientIP(c.Peer, c.Forwarded, trusted); got != c.Client {
			t.Errorf("%s: %q from %s is of %s; want %s", c.Name, c.Forwarded, c.Peer, got, c.Client)
		}
		if got := clientIP(c.Peer, c.Forwarded, nil); got != c.Peer.Unmap() {
			t.Errorf("%s, without trusted proxies: %s; want %s", c.Name, got, c.Peer)
		}
	}
}

// FuzzClientAddress forges the entries of X-Forwarded-For before that of the proxy. The client must be the address that the proxy
// appends.
func FuzzClientAddress(f *testing.F) {
	for _, s := range []string{"203.0.113.1", "10.0.0.1, 10.0.0.2", "x,,[::1]:80", "[2001:db8::1]:443,", "1.2.3.4:99999", "\t ,\x00", "::ffff:10.0.0.1", "[[::1]]"} {
		f.Add(s, "10.2.3.4")
		f.Add("", s)
	}
	trusted := must(parseOptions("TRUSTED_PROXIES=10.0.0.0/8")).TrustedProxies
	proxy, client := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("203.0.113.7")
	f.Fuzz(func(t *testing.T, one, two string) {
		for _, forwarded := range [][]string{
			{one, two, client.String()},
			{one + "," + two + ", " + client.String()},
			{one, two + "," + client.String() + ":80", "10.4.5.6, ,"},
		} {
			if got := clientIP(proxy, forwarded, trusted); got != client {
				t.Fatalf("%q is of %s; want %s", forwarded, got, client)
			}
		}
		if got := clientIP(proxy, []string{one, two}, trusted); !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("%q, %q: the client is %v", one, two, got)
		}
	})
}
