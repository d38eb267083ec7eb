package web

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// AddressRange is a range of addresses, written as 10.0.0.0/8 or as one address.
type AddressRange netip.Prefix

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *AddressRange) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		*a = AddressRange(netip.PrefixFrom(addr, addr.BitLen()))
		return nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p != p.Masked() || p.Addr().Is4In6() {
		return fmt.Errorf("%q is no range of addresses: want such as 10.0.0.0/8, with no bits set behind the slash's number, or one address", s)
	}
	*a = AddressRange(p)
	return nil
}

// String implements [fmt.Stringer].
func (a AddressRange) String() string { return netip.Prefix(a).String() }

// Prefixes returns the ranges as [netip] has them.
func Prefixes(ranges []AddressRange) (prefixes []netip.Prefix) {
	for _, r := range ranges {
		prefixes = append(prefixes, netip.Prefix(r))
	}
	return prefixes
}

// clientOf returns who sent a request that came from peer: peer itself, unless it is
// a trusted proxy. Then it is the last address in X-Forwarded-For that is none: each
// proxy adds its own peer at the end, and what stands before that anybody can have
// written. At what is no address it stops, with the last one that was. The addresses
// have no zone, and IPv4 ones are such.
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
			if !slices.ContainsFunc(trusted, func(r AddressRange) bool { return netip.Prefix(r).Contains(client) }) {
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
