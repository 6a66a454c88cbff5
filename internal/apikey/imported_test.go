package apikey

import (
	"slices"
	"strings"
	"testing"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/keyhash"
)

// A candidate for an imported key in a text is tried twice: to the end of most keys' alphabet, and to that of every key's.
func TestImportedKeysInAText(t *testing.T) {
	t.Parallel()
	f := NewForms(map[string]keyhash.Form{"live": keyhash.SHA256("sk_live_"), "old": keyhash.SHA256("old-"), "any": keyhash.SHA256("")})
	for text, want := range map[string][]string{
		"nothing":                             nil,
		"key=sk_live_aB3-_;":                  {"sk_live_aB3-_"},
		"sk_live_aB3.cd+/=~: rest":            {"sk_live_aB3", "sk_live_aB3.cd+/=~:"},
		"(old-1), \"sk_live_2\"":              {"sk_live_2", "old-1"},
		"sk_live_" + strings.Repeat("a", 600): {"sk_live_" + strings.Repeat("a", 504)},
	} {
		is.Equal(t, want, slices.Collect(f.Find([]byte(text))), text)
	}
	is.Empty(t, slices.Collect((*Forms)(nil).Find([]byte("sk_live_aB3"))))
}

// A JWT is nobody's API key, unless a form's prefix says so, and a panic of the host's is an error of that one key.
func TestWhatAFormMayBeAskedAbout(t *testing.T) {
	t.Parallel()
	panics := keyhash.Form{Prefix: "bad_", Lookup: func(string) string { panic("a bug of the host's") }, Verify: func(string, string) bool { return false }}
	f := NewForms(map[string]keyhash.Form{"any": keyhash.SHA256(""), "start": keyhash.ByStart("pk_", 5, panics.Verify), "bad": panics})
	is.True(t, f.Recognize("whatever"))
	is.False(t, f.Recognize("eyJhbGciOiJFZERTQSJ9"))
	is.False(t, f.Recognize(strings.Repeat("k", 513)))
	is.False(t, (*Forms)(nil).Recognize("whatever"))

	ask := func(text, of, lookup string) (found, whole bool) {
		id := opaque.ImportedID("ns", of, lookup, 0).String()
		found, whole, err := f.Imported("ns", text, func(x string) bool { return x == id })
		is.NoError(t, err)
		return found, whole
	}
	digest := keyhash.SHA256("").Lookup("whatever")
	found, whole := ask("whatever", "any", digest)
	is.True(t, found && whole)
	found, whole = ask("pk_12345", "start", "pk_12")
	is.True(t, found && !whole, "who knows its start can ask")
	found, _ = ask("whatever", "any", "something else")
	is.False(t, found)
	_, _, err := f.Imported("ns", "bad_1", func(string) bool { return false })
	is.ErrorIs(t, err, fault.Unavailable)

	for name, form := range map[string]keyhash.Form{"two words": keyhash.SHA256(""), "": keyhash.SHA256(""), "none": {}, "jwt": keyhash.SHA256("eyJ")} {
		is.ErrorIs(t, CheckForms(map[string]keyhash.Form{name: form}), fault.InvalidRequest, name)
	}
}
