package ticket_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

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
	require.NoError(t, ticket.Check(r))
	require.Error(t, ticket.Check(&ticket.Record[string]{V: 2}))
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
