package sqlitestore_test

import (
	"context"
	"database/sql"
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
