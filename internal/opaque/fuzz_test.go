package opaque

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzOpaqueToken: whatever is taken has one text; whatever was encoded comes back; cut, extended or changed in one
// byte it never passes.
func FuzzOpaqueToken(f *testing.F) {
	for i, kind := range kinds {
		f.Add(some("ap", kind, byte(i)), uint8(kind), uint16(i*20), byte('Q'))
	}
	f.Add("ap_ak_"+strings.Repeat("z", 101), uint8(APIKey), uint16(6), byte(0))
	f.Add("ap_ak_"+strings.Repeat("\x00", 101), uint8(APIKey), uint16(6), byte('_'))
	f.Add("", uint8(0), uint16(0), byte(0))
	f.Fuzz(func(t *testing.T, text string, k uint8, at uint16, c byte) {
		for _, kind := range kinds {
			if again, ok := takes(text, "ap", kind); ok {
				if again != text {
					t.Fatalf("%q and %q are one token", text, again)
				}
				if KindOf(text) != kind {
					t.Fatalf("%q is taken for what it does not look like", text)
				}
			}
		}
		_ = KindOf(text)
		if s := Start(text); !strings.HasPrefix(text, s) {
			t.Fatalf("%q does not start with %q", text, s)
		}
		if id, err := ParseID(text); err == nil && id.String() != text {
			t.Fatalf("%q and %q are one ID", text, id)
		}

		// text as the payload of a token of its own.
		kind := kinds[int(k)%len(kinds)]
		payload := make([]byte, payloadSize(kind))
		copy(payload[1:], text)
		payload[0] = version
		token := encode("ap", kind, payload)
		again, ok := takes(token, "ap", kind)
		if !ok || again != token {
			t.Fatalf("%q comes back as %q", token, again)
		}
		i := int(at) % len(token)
		if token[i] != c {
			changed := []byte(token)
			changed[i] = c
			if _, ok := takes(string(changed), "ap", kind); ok {
				t.Fatalf("%q passes, %q with one byte changed", changed, token)
			}
		}
		for name, bad := range map[string]string{
			"cut": token[:i], "without its start": token[i+1:], "extended": token + string([]byte{c}), "with more in front": string([]byte{c}) + token,
			"with one byte less": token[:i] + token[i+1:], "with one byte more": token[:i] + string([]byte{c}) + token[i:],
		} {
			if _, ok := takes(bad, "ap", kind); ok {
				t.Fatalf("%q passes, %q %s", bad, token, name)
			}
		}
	})
}

// FuzzFind: what is found is in the text, whole, verified, and nothing that stands there by itself is missed.
func FuzzFind(f *testing.F) {
	for i, kind := range kinds {
		f.Add([]byte("x "+some("ap", kind, byte(i))), []byte("\n"), uint8(kind))
	}
	f.Add([]byte("ap_ak_ap_ak_ap_ak_"), []byte("abcdefghijklmnopqrstuvwxyz_rt_"), uint8(2))
	shape := regexp.MustCompile("^(?:" + Pattern + ")$")
	f.Fuzz(func(t *testing.T, before, after []byte, k uint8) {
		kind := kinds[int(k)%len(kinds)]
		token := some("acme", kind, k)
		// Around a token that stands by itself nothing may hide it.
		text := append(append(bytes.Clone(before), ' '), token...)
		text = append(append(text, ' '), after...)
		was := bytes.Clone(text)
		at, there := 0, false
		for hit := range Find(text) {
			i := bytes.Index(text[at:], hit)
			if i < 0 {
				t.Fatalf("%q is not in the rest of the text", hit)
			}
			at += i + len(hit)
			require.Regexp(t, shape, string(hit))
			prefix, _, _ := strings.Cut(string(hit), "_")
			if _, ok := takes(string(hit), prefix, KindOf(string(hit))); !ok {
				t.Fatalf("%q was found and does not verify", hit)
			}
			there = there || string(hit) == token
		}
		if !there {
			t.Fatalf("the token was missed between %q and %q", before, after)
		}
		if !bytes.Equal(text, was) {
			t.Fatal("the text was written to")
		}
	})
}
