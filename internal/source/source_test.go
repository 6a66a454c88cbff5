package source_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/source"
)

func TestOf(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"192.0.2.1":          "192.0.2.1",
		"::ffff:192.0.2.1":   "192.0.2.1",
		"2001:db8:1:2::1":    "2001:db8:1:2::/64",
		"2001:db8:1:2:3::ff": "2001:db8:1:2::/64",
		"2001:db8:1:3::1":    "2001:db8:1:3::/64",
		"fe80::1%eth0":       "fe80::/64",
	} {
		require.Equal(t, want, source.Of(netip.MustParseAddr(addr)), addr)
	}
	require.Equal(t, "invalid IP", source.Of(netip.Addr{}), "those who have none are counted together")
}
