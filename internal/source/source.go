// Package source says whom a throttle counts. It is a leaf calculation.
package source

import "net/netip"

// Of names the source of a request: an IPv4 address, or the /64 that a network gives to one subscriber, who could else
// take another address for each guess.
func Of(a netip.Addr) string {
	if a = a.Unmap(); a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
