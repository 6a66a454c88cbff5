package bench

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

// withoutEvents drops the events of each change, so that the rest can be measured alone.
type withoutEvents struct{ store.Store }

func (s withoutEvents) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	bare := *c
	bare.Events = nil
	return s.Store.Apply(ctx, &bare)
}

// BenchmarkSize is the bytes that each engine uses for one live session with its indexes, for the event of its login, and for the
// count of its subject, which a limit adds where each subject has one session. APITOKEN_BENCH_SESSIONS sessions are made for each
// of the three, 1,000 without it. Reading the size does what the engine's own maintenance does now and then, such as VACUUM.
func BenchmarkSize(b *testing.B) {
	n := number("APITOKEN_BENCH_SESSIONS", 1_000)
	ctx := context.Background()
	for _, engine := range engines {
		b.Run(engine, func(b *testing.B) {
			for b.Loop() {
				open, size := startSized(b, engine)
				st := open()
				var subjects atomic.Int64

				// each returns the bytes that a login adds, with a new subject for each.
				each := func(change func(*apitoken.Config)) float64 {
					svc := newService(b, "EdDSA", change)
					login := func(int) error {
						_, err := svc.Issue(ctx, apitoken.Request{Subject: fmt.Sprint("user", subjects.Add(1)), Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
						return err
					}
					before, err := size()
					if err != nil {
						b.Fatal(err)
					}
					if err := calls(16, n, login); err != nil {
						b.Fatal(err)
					}
					after, err := size()
					if err != nil {
						b.Fatal(err)
					}
					return float64(after-before) / float64(n)
				}
				session := each(func(c *apitoken.Config) { c.Store = withoutEvents{st} })
				event := each(func(c *apitoken.Config) { c.Store = st }) - session
				count := each(func(c *apitoken.Config) {
					c.Store = withoutEvents{st}
					c.Limits = apitoken.Limits{GrantsPerSubject: 20}
				}) - session
				b.ReportMetric(session, "B/session")
				b.ReportMetric(event, "B/event")
				b.ReportMetric(count, "B/count")
			}
		})
	}
}

// boltBytes is the pages in use, once the index has been merged: the file's free pages are written again.
func boltBytes(ctx context.Context, dir string, st *boltstore.Store) (int64, error) {
	used := func() (int64, error) {
		path := filepath.Join(dir, "copy.db")
		f, err := os.Create(path)
		if err != nil {
			return 0, err
		}
		err = errors.Join(st.Backup(ctx, f), f.Close())
		if err != nil {
			return 0, err
		}
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true})
		if err != nil {
			return 0, err
		}
		defer db.Close()
		fi, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		return fi.Size() - int64(db.Stats().FreePageN)*int64(db.Info().PageSize), nil
	}
	last, err := used()
	for err == nil {
		time.Sleep(500 * time.Millisecond)
		now, err := used()
		if err != nil || now == last {
			return now, err
		}
		last = now
	}
	return 0, err
}

func sqliteBytes(ctx context.Context, path string) (used int64, err error) {
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	err = db.QueryRowContext(ctx, `SELECT (p.page_count - f.freelist_count) * s.page_size
		FROM pragma_page_count p, pragma_freelist_count f, pragma_page_size s`).Scan(&used)
	return used, err
}

func postgresBytes(ctx context.Context, url, prefix string) (used int64, err error) {
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, err
	}
	defer c.Close(ctx)
	if _, err := c.Exec(ctx, "VACUUM"); err != nil {
		return 0, err
	}
	err = c.QueryRow(ctx, `SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND starts_with(relname, $1)`, prefix).Scan(&used)
	return used, err
}

// mysqlBytes is the pages that InnoDB has given to the tables and their indexes.
func mysqlBytes(ctx context.Context, dsn, prefix string) (used int64, err error) {
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, `SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()`)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var names []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return 0, err
		}
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	for _, name := range names {
		if _, err := db.ExecContext(ctx, "ANALYZE TABLE `"+name+"`"); err != nil {
			return 0, err
		}
		var bytes int64
		err := db.QueryRowContext(ctx, `SELECT data_length + index_length FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?`, name).Scan(&bytes)
		if err != nil {
			return 0, err
		}
		used += bytes
	}
	return used, nil
}

func redisBytes(ctx context.Context, c *redis.Client) (int64, error) {
	info, err := c.InfoMap(ctx, "memory").Result()
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(info["Memory"]["used_memory"], 10, 64)
}

// etcdBytes is one member's database after all earlier revisions of its keys were dropped.
func etcdBytes(ctx context.Context, c *clientv3.Client) (int64, error) {
	at := c.Endpoints()[0]
	state, err := c.Status(ctx, at)
	if err != nil {
		return 0, err
	}
	if _, err := c.Compact(ctx, state.Header.Revision, clientv3.WithCompactPhysical()); err != nil && !strings.Contains(err.Error(), "has been compacted") {
		return 0, err
	}
	if _, err := c.Defragment(ctx, at); err != nil {
		return 0, err
	}
	if state, err = c.Status(ctx, at); err != nil {
		return 0, err
	}
	return state.DbSizeInUse, nil
}
