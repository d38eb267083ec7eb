package web

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"cats.example/shared/httpserver"
	"cats.example/shared/ratelimit"
)

const forwardedFor = "X-Forwarded-For" // in canonical form

// AddressRanges is a list of address ranges, read from text such as "10.0.0.0/8, 192.0.2.1".
type AddressRanges []netip.Prefix

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *AddressRanges) UnmarshalText(text []byte) error {
	for s := range strings.SplitSeq(string(text), ",") {
		s = strings.TrimSpace(s)
		p, err := netip.ParsePrefix(s)
		if addr, addrErr := netip.ParseAddr(s); addrErr == nil && addr.Zone() == "" {
			p, err = addr.Unmap().Prefix(addr.Unmap().BitLen())
		}
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("%q is not an address range: want a range such as 10.0.0.0/8, with no bits set after the prefix, or one address", s)
		}
		*a = append(*a, p)
	}
	return nil
}

// clientKey returns the key under which r is counted, and gives the client's address to the log line of r.
func clientKey(r *http.Request, trusted AddressRanges) string {
	peer, _ := netip.ParseAddrPort(r.RemoteAddr) // zero without a network connection
	addr := clientIP(peer.Addr(), r.Header[forwardedFor], trusted)
	if addr != peer.Addr().Unmap().WithZone("") {
		httpserver.SetClientAddress(r.Context(), addr)
	}
	return ratelimit.ClientKey(addr)
}

// clientIP returns the address of the client that sent a request through peer.
//
// This is peer itself unless peer is a trusted proxy. Otherwise it is the last address in X-Forwarded-For that is not a trusted
// proxy: each proxy appends the address of its own peer, and clients can forge the entries before. An invalid entry ends the
// search; the result is then the address after it. The result has no zone and is never an IPv4-mapped IPv6 address.
func clientIP(peer netip.Addr, forwarded []string, trusted AddressRanges) netip.Addr {
	client := peer.Unmap().WithZone("")
	hasClient := func(p netip.Prefix) bool { return p.Contains(client) }
	list := strings.Join(forwarded, ",")
	for list != "" && slices.ContainsFunc(trusted, hasClient) {
		i := strings.LastIndexByte(list, ',')
		last := strings.TrimSpace(list[i+1:])
		list = list[:max(i, 0)]
		if last == "" { // RFC 9110 section 5.6.1.2
			continue
		}
		hop := parseHop(last)
		if !hop.IsValid() {
			return client
		}
		client = hop
	}
	return client
}

// parseHop returns the address in an element of X-Forwarded-For, with or without a port, and the zero Addr if it has none.
func parseHop(s string) netip.Addr {
	addr, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		with, _ := netip.ParseAddrPort(s)
		addr = with.Addr()
	}
	return addr.Unmap().WithZone("")
}
