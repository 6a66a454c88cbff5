package redirect_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/redirect"
)

func TestWhatMayBeRegistered(t *testing.T) {
	t.Parallel()
	for _, uri := range []string{
		"https://app.example.com/cb", "https://app.example.com/cb?x=1", "https://app.example.com", "http://127.0.0.1/cb", "http://[::1]:8080/cb",
		"http://localhost:3000/cb", "com.example.app:/cb", "com.example.app://cb",
	} {
		require.NoError(t, redirect.Check(uri, none), uri)
	}
	for _, uri := range []string{
		"", "/cb", "app.example.com/cb", "http://app.example.com/cb", "https:///cb", "https://a.example.com/cb#x", "https://a.example.com/cb#", "javascript:alert(1)", "data:text/html,x",
		"app:/cb", "https://u:p@a.example.com/", "https://*.example.com/cb", "https://a.example.com/ b", "https://a.example.com/\r\nx", "http://127.0.0.1.example.com/",
		"https://a.example.com/\\@evil.example.com",
	} {
		require.Error(t, redirect.Check(uri, none), uri)
	}
	chosen := func(scheme string) bool { return scheme == "cursor" || scheme == "javascript" }
	require.NoError(t, redirect.Check("cursor://anysphere.cursor-retrieval/oauth/callback", chosen), "by the host's choice")
	require.Error(t, redirect.Check("vscode://x/cb", chosen))
	require.Error(t, redirect.Check("javascript:alert(1)", chosen), "no choice makes it a program's own")
	require.NoError(t, redirect.Scheme("cursor"))
	for _, name := range []string{"", "https", "javascript", "Cursor", "a b", "1x", "x:"} {
		require.Error(t, redirect.Scheme(name), name)
	}
}

func none(string) bool { return false }

func TestWhatARequestMayName(t *testing.T) {
	t.Parallel()
	registered := []string{"https://app.example.com/cb", "http://127.0.0.1/cb", "http://[::1]:1/cb?x=1", "http://localhost:3000/cb"}
	for given, want := range map[string]bool{
		"https://app.example.com/cb":         true,
		"https://app.example.com/cb/":        false,
		"https://app.example.com/cb?x":       false,
		"https://app.example.com:443/cb":     false,
		"https://APP.example.com/cb":         false,
		"https://app.example.com/cb/../cb":   false,
		"http://127.0.0.1:49152/cb":          true,
		"http://127.0.0.1/cb":                true,
		"http://127.0.0.1:49152/cb2":         false,
		"http://127.0.0.1:x/cb":              false,
		"http://127.0.0.1:/cb":               false,
		"http://127.0.0.1:80@evil.test/cb":   false,
		"http://127.0.0.2:49152/cb":          false,
		"http://[::1]:49152/cb?x=1":          true,
		"http://[::1]/cb?x=1":                true,
		"http://localhost:3000/cb":           true,
		"http://localhost:3001/cb":           false,
		"https://127.0.0.1:49152/cb":         false,
		"http://127.0.0.1:49152/cb#fragment": false,
		"":                                   false,
	} {
		require.Equal(t, want, redirect.Match(registered, given), given)
	}
}
