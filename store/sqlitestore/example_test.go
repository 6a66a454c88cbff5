package sqlitestore_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/sqlitestore"
)

func ExampleOpen() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	st, err := sqlitestore.Open(filepath.Join(dir, "tokens.db"), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	// apitoken.New(apitoken.Config{Store: st, …}); a tenant is st.Namespace("acme").
	_, err = st.Namespace("acme").Get(context.Background(), store.KindRole, "reader")
	fmt.Println(err)
	// Output: store: not found
}

// Beside the host's own tables, in its database and through its pool.
func ExampleNew() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	db, err := sql.Open("sqlite", filepath.Join(dir, "app.db"))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	st, err := sqlitestore.New(context.Background(), db, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	fmt.Println("put back from a backup:", st.Restored())
	// Output: put back from a backup: false
}
