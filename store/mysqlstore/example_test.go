package mysqlstore_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/go-sql-driver/mysql"

	"github.com/apitoken-go/apitoken/store/mysqlstore"
)

func ExampleOpen() {
	ctx := context.Background()
	cfg, err := mysql.ParseDSN(os.Getenv("DATABASE_DSN")) // tokens:secret@tcp(db.example.com)/tokens?tls=true
	if err != nil {
		log.Fatal(err)
	}
	st, err := mysqlstore.Open(ctx, cfg, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	// apitoken.New(apitoken.Config{Store: st, …}); a tenant is st.Namespace("acme").
}

func ExampleMigrations() {
	sql, err := mysqlstore.Migrations(&mysqlstore.Options{Prefix: "tok_"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(sql) > 0) // for a DBA; then Open with Options.Manual
	// Output: true
}
