package apitoken

import "testing"

// A scope of another issuer that would not be written here is dropped, and does not void its token.
func TestScopesOfOthers(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "", "orders:read": "orders:read", "orders:read a::b x:": "orders:read", "a a": "a", " b  a ": "a b",
	} {
		if got := knownScopes(in); got != want {
			t.Errorf("knownScopes(%q) = %q, want %q", in, got, want)
		}
	}
}
