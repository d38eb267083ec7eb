package web

import (
	"net/netip"
	"strings"
	"testing"

	"cats.example/shared/config"
)

func ranges(t testing.TB, list string) AddressRanges {
	t.Helper()
	var o struct {
		Ranges AddressRanges `env:"RANGES"`
	}
	if err := config.Parse(&o, []string{"RANGES=" + list}); err != nil {
		t.Fatal(err)
	}
	return o.Ranges
}

func TestTheClientIsTheLastAddressThatIsNoTrustedProxy(t *testing.T) {
	trusted := ranges(t, "10.0.0.0/8, 2001:db8:ffff::/48,192.0.2.1")
	const direct, proxy = "198.51.100.9", "10.1.2.3"
	for name, c := range map[string]struct {
		peer      string
		forwarded []string
		want      string
	}{
		"a stranger who claims":               {direct, []string{"203.0.113.1"}, direct},
		"a stranger who names a proxy":        {direct, []string{"203.0.113.1, 10.0.0.1"}, direct},
		"a proxy that says nothing":           {proxy, nil, proxy},
		"one proxy":                           {proxy, []string{"203.0.113.1"}, "203.0.113.1"},
		"a client who claims, by a proxy":     {proxy, []string{"8.8.8.8, 203.0.113.1"}, "203.0.113.1"},
		"a client who claims to be a proxy":   {proxy, []string{"8.8.8.8, 10.9.9.9, 203.0.113.1"}, "203.0.113.1"},
		"two proxies":                         {proxy, []string{"203.0.113.1, 192.0.2.1"}, "203.0.113.1"},
		"two proxies, in two headers":         {proxy, []string{"8.8.8.8, 203.0.113.1", "192.0.2.1"}, "203.0.113.1"},
		"a header of the client's own":        {proxy, []string{"8.8.8.8", "203.0.113.1"}, "203.0.113.1"},
		"proxies alone":                       {proxy, []string{"10.0.0.1, 10.0.0.2"}, "10.0.0.1"},
		"an address with a port":              {proxy, []string{"203.0.113.1:51234"}, "203.0.113.1"},
		"IPv6":                                {proxy, []string{"2001:db8::7"}, "2001:db8::7"},
		"IPv6 in brackets":                    {proxy, []string{"[2001:db8::7]"}, "2001:db8::7"},
		"IPv6 with a port":                    {proxy, []string{"[2001:db8::7]:443"}, "2001:db8::7"},
		"IPv6 with a zone":                    {proxy, []string{"fe80::1%eth0"}, "fe80::1"},
		"IPv4 in IPv6":                        {"::ffff:10.1.2.3", []string{"::ffff:203.0.113.1"}, "203.0.113.1"},
		"a proxy in IPv6":                     {"2001:db8:ffff::1", []string{"203.0.113.1"}, "203.0.113.1"},
		"garbage":                             {proxy, []string{"unknown"}, proxy},
		"garbage before an address":           {proxy, []string{"unknown, 203.0.113.1"}, "203.0.113.1"},
		"garbage behind an address":           {proxy, []string{"203.0.113.1, unknown"}, proxy},
		"garbage between an address, a proxy": {proxy, []string{"203.0.113.1, x, 10.0.0.7"}, "10.0.0.7"},
		"empty elements":                      {proxy, []string{", 203.0.113.1 , ,", "", " "}, "203.0.113.1"},
		"tabs":                                {proxy, []string{"\t203.0.113.1\t,\t10.0.0.1"}, "203.0.113.1"},
		"leading zeros":                       {proxy, []string{"203.0.113.01"}, proxy},
		"a port that is none":                 {proxy, []string{"203.0.113.1:99999"}, proxy},
		"a name":                              {proxy, []string{"localhost"}, proxy},
	} {
		if got := clientOf(netip.MustParseAddr(c.peer), c.forwarded, trusted).String(); got != c.want {
			t.Errorf("%s: %q from %s is of %s; want %s", name, c.forwarded, c.peer, got, c.want)
		}
		if got := clientOf(netip.MustParseAddr(c.peer), c.forwarded, nil); got != netip.MustParseAddr(c.peer).Unmap() {
			t.Errorf("%s: nobody is trusted, and %s is taken for %s", name, c.peer, got)
		}
	}
}

func TestAddressRangesAreExact(t *testing.T) {
	for _, s := range []string{"10.0.0.1/8", "10.0.0.0/33", "10.0.0", "cats.example.com", "fe80::1%eth0", "*", "10.0.0.0/8 192.0.2.1", "::ffff:10.0.0.0/104"} {
		var a AddressRanges
		if a.UnmarshalText([]byte(s)) == nil {
			t.Errorf("%q is taken for %v", s, a)
		}
	}
	for s, want := range map[string]string{"192.0.2.1": "192.0.2.1/32", "::1": "::1/128", " 10.0.0.0/8": "10.0.0.0/8", "::ffff:192.0.2.1": "192.0.2.1/32", "0.0.0.0/0": "0.0.0.0/0"} {
		var a AddressRanges
		if err := a.UnmarshalText([]byte(s)); err != nil || len(a) != 1 || a[0].String() != want {
			t.Errorf("%q: %v, %v", s, a, err)
		}
	}
}

// FuzzClientAddress has strangers write what stands before what their proxy adds:
// whatever that is, the client is who the proxy saw.
func FuzzClientAddress(f *testing.F) {
	for _, s := range []string{"", "203.0.113.1", "10.0.0.1, 10.0.0.2", "x,,[::1]:80", "[2001:db8::1]:443,", "1.2.3.4:99999", "\t ,\x00", "::ffff:10.0.0.1", "[[::1]]"} {
		f.Add(s, "10.2.3.4")
		f.Add("203.0.113.1", s)
	}
	trusted := ranges(f, "10.0.0.0/8")
	peer, seen, direct := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("198.51.100.9")
	f.Fuzz(func(t *testing.T, one, two string) {
		if got := clientOf(direct, []string{one, two}, trusted); got != direct {
			t.Fatalf("a stranger passes for %s", got)
		}
		for _, forwarded := range [][]string{
			{one, two, seen.String()},
			{one + "," + two + ", " + seen.String()},
			{one, two + "," + seen.String() + ":80", "10.4.5.6, ,"},
		} {
			if got := clientOf(peer, forwarded, trusted); got != seen {
				t.Fatalf("%q is of %s; want %s", forwarded, got, seen)
			}
		}
		got := clientOf(peer, []string{one, two}, trusted)
		if !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("%q, %q: the client is %v", one, two, got)
		}
		if got != peer && !strings.ContainsAny(one+two, "0123456789:") {
			t.Fatalf("%q, %q: %v from nowhere", one, two, got)
		}
	})
}
