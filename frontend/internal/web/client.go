package web

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// AddressRange is a range of addresses, written as 10.0.0.0/8 or as one address.
type AddressRange struct{ netip.Prefix }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *AddressRange) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		a.Prefix = netip.PrefixFrom(addr, addr.BitLen())
		return nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p != p.Masked() || p.Addr().Is4In6() {
		return fmt.Errorf("%q is no range of addresses: want such as 10.0.0.0/8, with no bits set behind the slash's number, or one address", s)
	}
	a.Prefix = p
	return nil
}

// Prefixes returns ranges as values of package netip.
func Prefixes(ranges []AddressRange) (prefixes []netip.Prefix) {
	for _, r := range ranges {
		prefixes = append(prefixes, r.Prefix)
	}
	return prefixes
}

// clientOf returns the address of the client of a request that came from peer: peer itself, unless it is a trusted proxy. In
// that case it is the last address in X-Forwarded-For that is no trusted proxy: each proxy appends its own peer, and clients
// can forge the entries before. An entry that is no address ends the search, and the result is the address after it.
// The result has no zone, and is never an IPv4-mapped IPv6 address.
func clientOf(peer netip.Addr, forwarded []string, trusted []AddressRange) netip.Addr {
	client := peer.Unmap().WithZone("")
	if len(trusted) == 0 { // most often
		return client
	}
	for _, rest := range slices.Backward(forwarded) { // several of the header are one list
		for more := true; more; {
			var last string
			if rest, last, more = cutLast(rest); strings.TrimSpace(last) == "" {
				continue // an empty element is none
			}
			if !slices.ContainsFunc(trusted, func(r AddressRange) bool { return r.Contains(client) }) {
				return client
			}
			addr, ok := hopOf(last)
			if !ok {
				return client
			}
			client = addr
		}
	}
	return client
}

// cutLast splits a list before its last element.
func cutLast(list string) (before, last string, more bool) {
	if i := strings.LastIndexByte(list, ','); i >= 0 {
		return list[:i], list[i+1:], true
	}
	return "", list, false
}

// hopOf reads an element of X-Forwarded-For: an address, with a port or without.
func hopOf(s string) (netip.Addr, bool) {
	s = strings.Trim(s, " \t")
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		with, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}, false
		}
		addr = with.Addr()
	}
	return addr.Unmap().WithZone(""), true
}

// forwardedFor is the header in its canonical form.
const forwardedFor = "X-Forwarded-For"

// client returns who sent r, and whether that is not the peer.
func (g *guard) client(r *http.Request) (client netip.Addr, forwarded bool) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}, false // not of a network
	}
	client = clientOf(peer.Addr(), r.Header[forwardedFor], g.TrustedProxies)
	return client, client != peer.Addr().Unmap().WithZone("")
}
