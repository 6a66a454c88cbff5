package sqlitestore_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/sqlitestore"
)

// A listing by a selector goes by the index of that, so that it costs nothing for the records of others: without the index it fails.
func TestListingsGoByTheirIndex(t *testing.T) {
	t.Parallel()
	for index, q := range map[string]store.Query{
		"record_subject": {Kind: store.KindRule, Subject: "s"},
		"record_client":  {Kind: store.KindRule, Client: "c"},
		"record_token":   {Kind: store.KindRule, Token: "t", Subject: "s"},
		"event_subject":  {Kind: store.KindEvent, Subject: "s", Client: "c"},
		"event_client":   {Kind: store.KindEvent, Client: "c", Type: "x"},
		"event_grant":    {Kind: store.KindEvent, Grant: "g", Subject: "s"},
		"event_token":    {Kind: store.KindEvent, Token: "t", Newest: true},
		"event_type":     {Kind: store.KindEvent, Type: "x"},
	} {
		t.Run(index, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			path := filepath.Join(t.TempDir(), "tokens.db")
			s := open(t, path, &sqlitestore.Options{})
			defer s.Close()
			q.Limit = 10
			_, err := s.List(ctx, q)
			require.NoError(t, err)
			db, err := sql.Open("sqlite", path)
			require.NoError(t, err)
			defer db.Close()
			_, err = db.Exec("DROP INDEX apitoken_" + index)
			require.NoError(t, err)
			_, err = s.List(ctx, q)
			require.ErrorContains(t, err, "no such index")
		})
	}
}

// Of several selectors a listing goes by the one that finds the fewest records, so that it does not read all that another finds. The
// index of the rare one loses here, behind the store's back, all but another record: a listing that goes by it finds nothing.
func TestListingsGoByTheRarestSelector(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		query  store.Query
		bereft string // the index
		found  int
	}{
		"a type behind a client":    {store.Query{Kind: store.KindEvent, Client: "web", Type: "rare"}, "event_type", 0},
		"with both indexes":         {store.Query{Kind: store.KindEvent, Client: "web", Type: "rare"}, "", 1},
		"a client behind a subject": {store.Query{Kind: store.KindEvent, Subject: "alice", Client: "rare"}, "event_client", 0},
		"the newest, and a page":    {store.Query{Kind: store.KindEvent, Client: "web", Type: "rare", Newest: true, Limit: 1}, "event_type", 0},
		"a record's client":         {store.Query{Kind: store.KindRule, Subject: "alice", Client: "rare"}, "record_client", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			path := filepath.Join(t.TempDir(), "tokens.db")
			s := open(t, path, &sqlitestore.Options{})
			defer s.Close()
			var made byte
			make := func(id, subject, client, kind string) {
				made++
				_, err := s.Apply(ctx, &store.Change{
					ID:     store.Version{made},
					Puts:   []store.Put{{Record: store.Record{Kind: store.KindRule, ID: id, Subject: subject, Client: client, Data: []byte("{}")}}},
					Events: []store.Record{{Kind: store.KindEvent, ID: id, Subject: subject, Client: client, Type: kind}},
				})
				require.NoError(t, err)
			}
			for i := range 6 {
				make(fmt.Sprint(i), "alice", "web", "token.issued")
			}
			make("rare type", "alice", "web", "rare")
			make("rare client", "alice", "rare", "token.issued")
			make("other", "bob", "rare", "rare")
			if x.bereft != "" {
				bereave(t, path, "apitoken_"+x.bereft)
			}
			if x.query.Limit == 0 {
				x.query.Limit = 10
			}
			p, err := s.List(ctx, x.query)
			require.NoError(t, err)
			require.Len(t, p.Records, x.found)
		})
	}
}

// bereave leaves the record "other" alone in an index, while the file says that the index holds all.
func bereave(t *testing.T, path, index string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	require.NoError(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	var text string
	require.NoError(t, db.QueryRow("SELECT sql FROM sqlite_schema WHERE name = ?", index).Scan(&text))
	for _, step := range []string{"DROP INDEX " + index, text + " AND id = 'other'", "PRAGMA writable_schema = ON"} {
		_, err = db.Exec(step)
		require.NoError(t, err, step)
	}
	_, err = db.Exec("UPDATE sqlite_schema SET sql = ? WHERE name = ?", text, index)
	require.NoError(t, err)
	var version int
	require.NoError(t, db.QueryRow("PRAGMA schema_version").Scan(&version))
	_, err = db.Exec(fmt.Sprint("PRAGMA schema_version = ", version+1)) // other connections read it again
	require.NoError(t, err)
}
