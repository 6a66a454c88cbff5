package issuers_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/issuers"
)

func TestWhatAnIssuerMayBeCalled(t *testing.T) {
	t.Parallel()
	for _, iss := range []string{
		"https://auth.example.com", "https://auth.example.com/tenant/1", "https://127.0.0.1:8443", "http://localhost:8080", "http://app.localhost",
		"http://127.0.0.1", "http://127.0.0.2:1", "http://[::1]:8080",
	} {
		require.Empty(t, issuers.CheckName(iss), iss)
	}
	for iss, why := range map[string]string{
		"": "required", "auth": "a URL", "https://": "a URL", "https://me@auth.example.com": "a URL", "https://[": "a URL",
		"https://auth.example.com?x": "no query", "https://auth.example.com#x": "no fragment", "https://auth.example.com?": "no query", "https://auth.example.com#": "no fragment",
		"http://auth.example.com": "https", "http://10.0.0.1": "https", "http://localhost.example.com": "https", "ftp://localhost": "https",
		"https://auth.example.com/" + strings.Repeat("x", 512): "512 bytes",
	} {
		require.Contains(t, issuers.CheckName(iss), why, iss)
	}
}
