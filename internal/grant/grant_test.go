package grant_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

func session() *grant.Record[string] {
	return &grant.Record[string]{V: 1, Subject: "alice", Client: "app", Audiences: []string{"api"}, Expires: 1_801_000_000_000,
		Created: 1_800_000_000_000, Birth: store.Position{History: 1 << 60, N: 7}, Scopes: []string{"a", "b"}, Owed: true}
}

// A session is refused without what every session has, and when a newer version wrote it.
func TestASessionHasAnOwnerAClientAnAudienceAndAnEnd(t *testing.T) {
	t.Parallel()
	require.NoError(t, grant.Form[string]().Check(session()))
	for name, spoil := range map[string]func(*grant.Record[string]){
		"another version": func(g *grant.Record[string]) { g.V = 2 },
		"no subject":      func(g *grant.Record[string]) { g.Subject = "" },
		"no client":       func(g *grant.Record[string]) { g.Client = "" },
		"no audience":     func(g *grant.Record[string]) { g.Audiences = nil },
		"no end":          func(g *grant.Record[string]) { g.Expires = 0 },
	} {
		g := session()
		spoil(g)
		require.Error(t, grant.Form[string]().Check(g), name)
	}
}

// The compact form comes back as it was written, and so does the JSON of earlier versions.
func TestBothFormsComeBack(t *testing.T) {
	t.Parallel()
	form := grant.Form[string]()
	w, err := form.Write(store.Record{ID: "g"}, session())
	require.NoError(t, err)
	back := new(grant.Record[string])
	require.NoError(t, form.Read(w.Record(), back))
	require.Equal(t, session(), back)

	old := store.Record{ID: "g", Data: []byte(`{"v":1,"sub":"alice","client":"app","aud":["api"],"expires":5,"created":1,"refreshed":1,"jti":"j","iat":1,"exp":2,"birth":{"History":1,"N":2}}`)}
	require.NoError(t, form.Read(old, back))
	require.Equal(t, "alice", back.Subject)
}

// A copied session rotated when it did in the store that it came from: no grace window opens again.
func TestACopiedSessionKeepsTheTimeOfItsRotation(t *testing.T) {
	t.Parallel()
	g := session()
	require.Equal(t, int64(9), g.Written(store.Record{Written: 9}))
	g.Rotated = 5
	require.Equal(t, int64(5), g.Written(store.Record{Written: 9}))
}

// Rules see a session by what it was opened with.
func TestRulesSeeASession(t *testing.T) {
	t.Parallel()
	g := session()
	x := g.Seen("id")
	require.Equal(t, "alice", x.Subject)
	require.Equal(t, "app", x.Client)
	require.Equal(t, "id", x.Grant)
	require.Equal(t, g.Birth, x.Pos.Birth)
	require.Equal(t, time.UnixMilli(g.Created), x.Iat)
	require.True(t, x.Renews)
}

// A session ends at its time to the second, when it was idle for too long, and by a rule on whom it is for.
func TestWhatEndsASession(t *testing.T) {
	t.Parallel()
	book := rules.NewBook(rules.LocalKeyer())
	now := time.UnixMilli(1_800_000_000_000)
	fresh := func() *grant.Record[string] {
		g := session()
		g.Expires, g.Refreshed, g.Idle = now.UnixMilli()+1500, now.UnixMilli(), 1000
		return g
	}
	require.NoError(t, fresh().Alive("g", book, now))
	require.NoError(t, fresh().Alive("g", book, now.Add(999*time.Millisecond)))
	require.ErrorIs(t, fresh().Alive("g", book, now.Add(time.Second)), fault.InvalidGrant, "idle")

	busy := fresh()
	busy.Idle = 0
	require.ErrorIs(t, busy.Alive("g", book, now.Add(time.Second)), fault.InvalidGrant, "in its last second")

	for _, target := range []rules.Target{rules.ByGrant("g"), rules.BySubject("alice"), rules.ByClient("app")} {
		held := &rules.Held{Target: target}
		book.Hold(held)
		require.ErrorIs(t, fresh().Alive("g", book, now), fault.InvalidGrant, "a rule on %s", target)
		book.Release(held)
	}
	book.Hold(&rules.Held{Target: rules.ByGrant("another")})
	require.NoError(t, fresh().Alive("g", book, now))
}
