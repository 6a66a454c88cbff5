package pgstore_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/apitoken-go/apitoken/store/pgstore"
)

func ExampleNew() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	st, err := pgstore.New(ctx, pool, &pgstore.Options{Schema: "tokens"})
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	// apitoken.New(apitoken.Config{Store: st, …}); a tenant is st.Namespace("acme").
}

func ExampleMigrations() {
	sql, err := pgstore.Migrations(&pgstore.Options{Prefix: "tok_"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(sql) > 0) // for a DBA; then New with Options.Manual
	// Output: true
}
