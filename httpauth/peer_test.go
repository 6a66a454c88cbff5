package httpauth

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	is "github.com/stretchr/testify/require"
)

// What is read by hand for speed is what netip reads; the rest is left to netip.
func TestPeersAreReadAsNetipReadsThem(t *testing.T) {
	t.Parallel()
	check := func(s string) {
		p, err := netip.ParseAddrPort(s)
		if a, ok := peer4(s); ok {
			is.NoError(t, err, "%q", s)
			is.Equal(t, p.Addr(), a, "%q", s)
		}
	}
	for _, s := range []string{
		"192.0.2.1:80", "0.0.0.0:0", "255.255.255.255:65535", "192.0.2.1", "192.0.2.1:", "192.0.2.1:65536", "192.0.2.1:000080", "192.0.2.1:00080",
		"192.0.2.01:80", "192.0.2.256:80", "192.0.2.1.:80", "192.0.2:80", ".192.0.2.1:80", "192.0.2.1.5:80", "192.0.2.1:8 0", "192.0.2.1:80:80",
		"[::1]:80", "::1:80", "[::ffff:192.0.2.1]:80", "", ":", "....:1", "1.2.3.4:-1", "1.2.3.4:+1", "00.1.2.3:1", "1.2.3.999999999999999999999:1", "@", "1..2.3:4",
	} {
		check(s)
	}
	const letters = "0012345678.:9-[%"
	for range 200_000 {
		b := make([]byte, rand.IntN(16))
		for i := range b {
			b[i] = letters[rand.IntN(len(letters))]
		}
		check(string(b))
	}
	for range 10_000 {
		want := netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32())}), uint16(rand.Uint32()))
		a, ok := peer4(want.String())
		is.True(t, ok, want)
		is.Equal(t, want.Addr(), a)
	}
}
