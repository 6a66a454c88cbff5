package jws

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// The reference reads strict JSON by another way than the scanner: encoding/json's tokens, and the rules on top. What
// the package accepts, the reference must accept with the same meaning, and the other way round within the limits.

var (
	errRefused = errors.New("reference: not strict JSON")
	// errUnclear: a U+FFFD in the result may be the text's own or stand for what encoding/json could not read.
	errUnclear = errors.New("reference: cannot tell")
)

type referenceReader struct {
	dec  *json.Decoder
	fffd bool // the document itself has a U+FFFD
}

func reference(doc string) (any, error) {
	if !utf8.ValidString(doc) || !json.Valid([]byte(doc)) {
		return nil, errRefused
	}
	r := &referenceReader{dec: json.NewDecoder(strings.NewReader(doc))}
	r.dec.UseNumber()
	r.fffd = strings.Contains(doc, "\ufffd") || strings.Contains(strings.ToLower(doc), `\ufffd`)
	v, err := r.value()
	if err != nil {
		return nil, err
	}
	if _, err := r.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errRefused
	}
	return v, nil
}

func (r *referenceReader) text(s string) error {
	switch {
	case !strings.Contains(s, "\ufffd"):
		return nil
	case r.fffd:
		return errUnclear
	}
	return errRefused
}

func (r *referenceReader) value() (any, error) {
	tok, err := r.dec.Token()
	if err != nil {
		return nil, err
	}
	switch tok := tok.(type) {
	case string:
		return tok, r.text(tok)
	case json.Delim:
		if tok == '[' {
			list := []any{}
			for r.dec.More() {
				v, err := r.value()
				if err != nil {
					return nil, err
				}
				list = append(list, v)
			}
			_, err := r.dec.Token()
			return list, err
		}
		members := map[string]any{}
		for r.dec.More() {
			name, err := r.dec.Token()
			if err != nil {
				return nil, err
			}
			text := name.(string)
			if err := r.text(text); err != nil {
				return nil, err
			}
			for old := range members {
				if strings.EqualFold(old, text) {
					return nil, errRefused
				}
			}
			v, err := r.value()
			if err != nil {
				return nil, err
			}
			members[text] = v
		}
		_, err := r.dec.Token()
		return members, err
	}
	return tok, nil
}

// isLimit reports whether err is about size, which the reference does not limit.
func isLimit(err error) bool {
	return errors.Is(err, errDepth) || errors.Is(err, errMembers) || errors.Is(err, errNumber) || errors.Is(err, errSize)
}

// sameAsReference holds CheckJSON's verdict on doc against the reference's.
func sameAsReference(t *testing.T, doc string) {
	t.Helper()
	got := CheckJSON([]byte(doc))
	_, want := reference(doc)
	switch {
	case errors.Is(want, errUnclear) || isLimit(got):
	case got == nil && want != nil:
		t.Fatalf("%q was taken, a strict reading refuses it: %v", doc, want)
	case got != nil && want == nil:
		t.Fatalf("%q is strict JSON and was refused: %v", doc, got)
	}
}

// mustObject reads doc, which the package took for an object; nil where the reference cannot tell.
func mustObject(t *testing.T, doc string) map[string]any {
	t.Helper()
	v, err := reference(doc)
	if errors.Is(err, errUnclear) {
		return nil
	}
	if err != nil {
		t.Fatalf("%q was taken, a strict reading refuses it: %v", doc, err)
	}
	members, ok := v.(map[string]any)
	if !ok {
		t.Fatalf("%q was taken for an object", doc)
	}
	return members
}

// member is the value of the JSON type T under name, its zero where it is missing.
func member[T any](t *testing.T, members map[string]any, name string) (out T) {
	t.Helper()
	v, there := members[name]
	if !there {
		return out
	}
	out, ok := v.(T)
	if !ok {
		t.Fatalf("%s was taken as a %T, it is %T", name, out, v)
	}
	return out
}

func texts(t *testing.T, v any) (out []string) {
	t.Helper()
	list, ok := v.([]any)
	if !ok {
		t.Fatalf("%v was taken for a list", v)
	}
	for _, e := range list {
		s, ok := e.(string)
		if !ok {
			t.Fatalf("%v was taken for a text", e)
		}
		out = append(out, s)
	}
	return out
}

// sameDate compares a NumericDate, read by cutting off its fraction, with what stands in the payload.
func sameDate(t *testing.T, members map[string]any, name string, got int64) {
	t.Helper()
	n := member[json.Number](t, members, name)
	if n == "" {
		n = "0"
	}
	whole, _, _ := strings.Cut(n.String(), ".")
	v, err := json.Number(whole).Int64()
	if err != nil || v != got || got < 0 || got > lastSecond {
		t.Fatalf("%s: %d was read from %q", name, got, n)
	}
}

// sameClaims compares what parseClaims read with the members of the payload.
func sameClaims(t *testing.T, tok *Token, members map[string]any) {
	t.Helper()
	c := &tok.Claims
	for name, got := range map[string]string{
		"iss": c.Issuer, "sub": c.Subject, "jti": c.ID, "client_id": c.ClientID, "scope": c.Scope, "sid": c.SessionID, "pos": c.Position,
	} {
		if want := member[string](t, members, name); got != want {
			t.Fatalf("%s: %q was read from %q", name, got, want)
		}
	}
	sameDate(t, members, "exp", c.Expires)
	sameDate(t, members, "iat", c.IssuedAt)
	sameDate(t, members, "nbf", c.NotBefore)

	var aud []string
	switch v := members["aud"].(type) {
	case nil:
	case string:
		aud = []string{v}
	default:
		aud = texts(t, v)
	}
	require.Equal(t, aud, c.Audience, "aud")
	for name, got := range map[string][]string{"roles": c.Roles, "gra": c.Chain} {
		var want []string
		if v, there := members[name]; there {
			want = texts(t, v)
		}
		require.Equal(t, want, got, name)
	}

	var actors []Actor
	for next, there := members["act"]; there; {
		act, ok := next.(map[string]any)
		if !ok {
			t.Fatalf("act: %v was taken", next)
		}
		a := Actor{member[string](t, act, "sub"), member[string](t, act, "iss"), member[string](t, act, "client_id")}
		if a.Subject == "" {
			t.Fatal("an actor without sub was taken")
		}
		actors = append(actors, a)
		next, there = act["act"]
	}
	require.Equal(t, actors, c.Actors, "act")

	binding := ""
	if cnf, there := members["cnf"]; there {
		m, ok := cnf.(map[string]any)
		if !ok {
			t.Fatalf("cnf: %v was taken", cnf)
		}
		binding = "?"
		for name, v := range m {
			if s, ok := v.(string); ok && len(m) == 1 && (name == "jkt" || name == "x5t#S256") {
				binding = name + ":" + s
			}
		}
	}
	require.Equal(t, binding, c.Binding, "whatever cnf names makes a token bound")

	own := map[string]any{}
	for name, v := range members {
		for _, known := range claimNames {
			if name != known && strings.EqualFold(name, known) {
				t.Fatalf("%q was taken, a variant of %q", name, known)
			}
		}
		if claim(name) < 0 {
			own[name] = v
		}
	}
	private := tok.PrivateClaims()
	if len(own) == 0 {
		require.Nil(t, private)
		return
	}
	back, err := reference(string(private))
	if errors.Is(err, errUnclear) {
		return
	}
	require.NoError(t, err)
	require.Equal(t, any(own), back, "the host's own claims")
	if err := checkPrivate(private); err != nil {
		t.Fatalf("%q cannot be issued again: %v", private, err)
	}
}

// sameHeader compares what Header.parse read with the members of the header.
func sameHeader(t *testing.T, h *Header, members map[string]any, proof bool) {
	t.Helper()
	for name, got := range map[string]string{"alg": h.Alg, "kid": h.KID, "typ": h.Typ} {
		if want := member[string](t, members, name); got != want {
			t.Fatalf("%s: %q was read from %q", name, got, want)
		}
	}
	if h.Alg == "" {
		t.Fatal("a header without alg was taken")
	}
	for name := range members {
		for _, known := range headerNames {
			if name != known && strings.EqualFold(name, known) {
				t.Fatalf("%q was taken, a variant of %q", name, known)
			}
		}
		switch name {
		case "crit", "b64", "jku", "x5u", "x5c", "zip", "enc", "epk", "p2s", "p2c":
			t.Fatalf("%s was taken", name)
		case "jwk":
			if !proof {
				t.Fatal("a key in the header was taken")
			}
			back := mustObject(t, h.JWK)
			require.Equal(t, members["jwk"], any(back))
		}
	}
	if _, there := members["jwk"]; !there && h.JWK != "" {
		t.Fatal("a key from nowhere")
	}
}

func compact(t *testing.T, doc []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, json.Compact(&out, doc))
	return out.Bytes()
}
