package mysqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/mysqlstore"
	"github.com/apitoken-go/apitoken/store/mysqlstore/mysqltest"
)

// A page makes no temporary table on the server's disk, which costs many times what it takes to find its rows.
func TestPagesStayInMemory(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := mysqltest.Private(t, mysqltest.Quick...)
	s := open(t, config(t, srv), mysqlstore.Options{})
	for i := range 5 {
		r := store.Record{Kind: "grant", ID: fmt.Sprint(i), Subject: "s", Data: make([]byte, 1000)}
		e := store.Record{Kind: store.KindEvent, ID: fmt.Sprint(i), Subject: "s", Data: make([]byte, 1000)}
		_, err := s.Apply(ctx, &store.Change{ID: store.Version{byte(i + 1)}, Puts: []store.Put{{Record: r}}, Events: []store.Record{e}})
		require.NoError(t, err)
	}
	db, err := sql.Open("mysql", srv.DSN)
	require.NoError(t, err)
	defer db.Close()
	made := func(f func() error) (n int) {
		count := func() (n int) {
			var name string
			require.NoError(t, db.QueryRow("SHOW GLOBAL STATUS LIKE 'Created_tmp_disk_tables'").Scan(&name, &n))
			return n
		}
		before := count()
		for range 10 {
			require.NoError(t, f())
		}
		return count() - before
	}
	// Whatever every read makes, as it asks for the table's age too.
	least := made(func() error { _, err := s.Get(ctx, "grant", "1"); return err })
	for _, q := range []store.Query{
		{Kind: "grant", Subject: "s", Limit: 3}, {Kind: "grant", Newest: true, Limit: 3},
		{Kind: store.KindEvent, Subject: "s", Limit: 3}, {Kind: store.KindEvent, Newest: true, Limit: 3},
	} {
		require.LessOrEqual(t, made(func() error { _, err := s.List(ctx, q); return err }), least, "%+v", q)
	}
}
