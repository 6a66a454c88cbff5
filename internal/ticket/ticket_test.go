package ticket_test

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/ticket"
	"github.com/apitoken-go/apitoken/store"
)

// The example of RFC 7636 appendix B.
const (
	verifier  = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
)

// A code verifier fits its challenge and nothing else; where there is no challenge there is no verifier.
func TestACodeVerifierFitsItsChallenge(t *testing.T) {
	t.Parallel()
	require.True(t, ticket.IsChallenge(challenge))
	require.True(t, ticket.Verifies(challenge, verifier))
	require.True(t, ticket.Verifies("", ""))
	for name, x := range map[string][2]string{
		"another verifier":                {challenge, strings.Repeat("a", 43)},
		"none":                            {challenge, ""},
		"one without a challenge":         {"", verifier},
		"the challenge itself":            {challenge, challenge},
		"shorter than 43 characters":      {challenge, verifier[:42]},
		"longer than 128 characters":      {challenge, strings.Repeat("a", 129)},
		"a challenge in another alphabet": {strings.Replace(challenge, "-", "+", 1), verifier},
	} {
		require.False(t, ticket.Verifies(x[0], x[1]), name)
	}
	for _, s := range []string{"", "plain", challenge[:42], challenge + "A", challenge + "=", strings.Replace(challenge, "-", "+", 1)} {
		require.False(t, ticket.IsChallenge(s), s)
	}
}

// What ends an identity ends what was prepared for it and what its ticket got: the position is that of its confirmation.
func TestRulesSeeWhatATicketGot(t *testing.T) {
	t.Parallel()
	at := store.Position{History: 3, N: 7}
	r := &ticket.Record[string]{V: 1, Subject: "alice", Client: "app", Spent: "session", Birth: at}
	x := r.Got(1_800_000_000_000)
	require.Equal(t, "alice", x.Subject)
	require.Equal(t, "app", x.Client)
	require.Equal(t, "session", x.Grant)
	require.Equal(t, at, x.Pos.Birth)
	require.Equal(t, at, x.Pos.View)
	require.Equal(t, time.UnixMilli(1_800_000_000_000), x.Iat)
	require.True(t, x.Renews)
	require.NoError(t, ticket.Form[string]().Check(r))
	require.Error(t, ticket.Form[string]().Check(&ticket.Record[string]{V: 2}))
}

// A ticket is open until it is redeemed, expires, or a rule ends it. One that cannot be read may be open.
func TestOpen(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000)
	book := rules.NewBook(rules.LocalKeyer())
	book.Hold(&rules.Held{Target: rules.BySubject("mallory")})
	for name, x := range map[string]struct {
		data string
		open bool
	}{
		"prepared":               {`{"v":1,"sub":"alice","expires":1000001}`, true},
		"of a later version":     {`{"v":2}`, true},
		"expired":                {`{"v":1,"sub":"alice","expires":1000000}`, false},
		"spent":                  {`{"v":1,"sub":"alice","expires":1000001,"spent":"g"}`, false},
		"of a revoked subject's": {`{"v":1,"sub":"mallory","expires":1000001}`, false},
	} {
		r := store.Record{Kind: ticket.Kind, ID: "t", Data: []byte(x.data), Written: 999_999}
		require.Equal(t, x.open, ticket.Open(r, book, now), name)
	}
}

// Whoever redeems a ticket brings what was set when it was prepared, in time; whoever repeats it, what the first one brought.
func TestWhatATicketAsksFor(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000)
	r := &ticket.Record[string]{V: 1, Expires: now.UnixMilli() + 1, Redirect: "https://app.example/cb", Challenge: challenge, Binding: "jkt:a",
		Again: 1000, Bound: "jkt:a"}
	good := ticket.Brought{Redirect: r.Redirect, Verifier: verifier, Binding: "jkt:a"}
	require.NoError(t, r.Admits(&good, now))
	require.True(t, r.Repeats(&good))
	require.ErrorIs(t, r.Admits(&good, now.Add(time.Millisecond)), fault.InvalidGrant, "expired")
	for name, change := range map[string]func(*ticket.Brought){
		"another redirect URI": func(x *ticket.Brought) { x.Redirect += "/" },
		"another verifier":     func(x *ticket.Brought) { x.Verifier = strings.Repeat("a", 43) },
		"another key":          func(x *ticket.Brought) { x.Binding = "jkt:b" },
		"no key":               func(x *ticket.Brought) { x.Binding = "" },
	} {
		x := good
		change(&x)
		require.ErrorIs(t, r.Admits(&x, now), fault.InvalidGrant, name)
		require.False(t, r.Repeats(&x), name)
	}

	leaked, once := *r, *r
	leaked.Leaked, once.Again = true, 0
	require.False(t, leaked.Repeats(&good), "found in a leak")
	require.False(t, once.Repeats(&good), "good once")
}

// A record does not hold the code, and is found by it: whether this service made the code or only knows its digest.
func TestATicketIsNamedByItsCode(t *testing.T) {
	t.Parallel()
	k := opaque.Key{ID: opaque.NewID(time.UnixMilli(1_000_000)), Secret: [32]byte{1}}
	id, hash := ticket.OfKey("ns", &k)
	require.Equal(t, k.ID.String(), id)
	r := &ticket.Record[string]{Hash: hash}
	require.True(t, r.Is(hash))
	k.Secret[0]++
	_, other := ticket.OfKey("ns", &k)
	require.False(t, r.Is(other))
	sum := sha256.Sum256([]byte("a device code"))
	id, hash = ticket.OfDigest("ns", sum)
	require.Equal(t, hex.EncodeToString(sum[:16]), id)
	_, elsewhere := ticket.OfDigest("another", sum)
	require.NotEqual(t, hash, elsewhere)
}
