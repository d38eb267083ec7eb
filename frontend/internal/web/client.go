package web

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// AddressRanges are ranges of addresses, written as 10.0.0.0/8 or as one address, and separated by commas.
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
			return fmt.Errorf("%q is no range of addresses: want such as 10.0.0.0/8, with no bits set behind the slash's number, or one address", s)
		}
		*a = append(*a, p)
	}
	return nil
}

// clientOf returns the address of the client of a request that came from peer: peer itself, unless it is a trusted proxy. In
// that case it is the last address in X-Forwarded-For that is no trusted proxy: each proxy appends its own peer, and clients
// can forge the entries before. An entry that is no address ends the search, and the result is the address after it.
// The result has no zone, and is never an IPv4-mapped IPv6 address.
func clientOf(peer netip.Addr, forwarded []string, trusted AddressRanges) netip.Addr {
	client := peer.Unmap().WithZone("")
	hasClient := func(p netip.Prefix) bool { return p.Contains(client) }
	list := strings.Join(forwarded, ",") // several of the header are one list
	for list != "" && slices.ContainsFunc(trusted, hasClient) {
		i := strings.LastIndexByte(list, ',')
		last := strings.TrimSpace(list[i+1:])
		list = list[:max(i, 0)]
		if last == "" {
			continue // an empty element is none
		}
		hop := hopOf(last)
		if !hop.IsValid() {
			return client
		}
		client = hop
	}
	return client
}

// hopOf returns the address in an element of X-Forwarded-For, which has a port or not; the zero Addr if there is none.
func hopOf(s string) netip.Addr {
	addr, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		with, _ := netip.ParseAddrPort(s)
		addr = with.Addr()
	}
	return addr.Unmap().WithZone("")
}

// forwardedFor is the header in its canonical form.
const forwardedFor = "X-Forwarded-For"
