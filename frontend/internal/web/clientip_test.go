package web

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func parseRanges(t testing.TB, list string) (a AddressRanges) {
	t.Helper()
	if err := a.UnmarshalText([]byte(list)); err != nil {
		t.Fatal(err)
	}
	return a
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
	trusted := parseRanges(t, "10.0.0.0/8, 2001:db8:ffff::/48,192.0.2.1")
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
	for _, s := range []string{"", "203.0.113.1", "10.0.0.1, 10.0.0.2", "x,,[::1]:80", "[2001:db8::1]:443,", "1.2.3.4:99999", "\t ,\x00", "::ffff:10.0.0.1", "[[::1]]"} {
		f.Add(s, "10.2.3.4")
		f.Add("203.0.113.1", s)
	}
	trusted := parseRanges(f, "10.0.0.0/8")
	proxy, client, untrusted := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("198.51.100.9")
	f.Fuzz(func(t *testing.T, one, two string) {
		if got := clientIP(untrusted, []string{one, two}, trusted); got != untrusted {
			t.Fatalf("an untrusted peer passes for %s", got)
		}
		for _, forwarded := range [][]string{
			{one, two, client.String()},
			{one + "," + two + ", " + client.String()},
			{one, two + "," + client.String() + ":80", "10.4.5.6, ,"},
		} {
			if got := clientIP(proxy, forwarded, trusted); got != client {
				t.Fatalf("%q is of %s; want %s", forwarded, got, client)
			}
		}
		got := clientIP(proxy, []string{one, two}, trusted)
		if !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("%q, %q: the client is %v", one, two, got)
		}
		if got != proxy && !strings.ContainsAny(one+two, "0123456789:") {
			t.Fatalf("%q, %q: %v is in neither", one, two, got)
		}
	})
}
