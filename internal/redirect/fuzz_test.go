package redirect_test

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/redirect"
)

// What matches is the registered URI, or goes to the loopback interface: wherever net/url, as a stand-in for browsers,
// says that it goes.
func FuzzMatch(f *testing.F) {
	f.Add("https://app.example.com/cb")
	f.Add("http://127.0.0.1:1/cb")
	f.Add("http://127.0.0.1:80@evil.example.com/cb")
	f.Add("http://[::1]:1/cb")
	f.Fuzz(func(t *testing.T, given string) {
		if !redirect.Match([]string{"https://app.example.com/cb", "http://127.0.0.1/cb", "http://[::1]/cb"}, given) || given == "https://app.example.com/cb" {
			return
		}
		u, err := url.Parse(given)
		require.NoError(t, err)
		require.Contains(t, []string{"127.0.0.1", "::1"}, u.Hostname())
		require.Equal(t, "/cb", u.Path)
		require.Nil(t, u.User)
	})
}
