package pgstore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/apitoken-go/apitoken/store"
)

// Both change the events table, which every write uses: what would make writes wait for longer than this is given up, and
// can be tried again.
const lockFor = "SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '5s'"

// Partition makes monthly partitions of the events table from this month on, so many of them. Call it at start and now and
// then: an event of a month without one lies in a table for the rest, from which it can only be purged, not detached.
// Months that have rows in that table already are left out. It needs a lock on the table for a moment, and fails rather than
// make writes wait for longer than a second.
func (s *Store) Partition(ctx context.Context, months int) error {
	now, err := s.headOpened(ctx)
	if err != nil {
		return err
	}
	this := time.UnixMilli(now.Now).UTC()
	for i := range months {
		from := time.Date(this.Year(), this.Month()+time.Month(i), 1, 0, 0, 0, 0, time.UTC)
		if err := s.partitionFor(ctx, from); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) partitionFor(ctx context.Context, from time.Time) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var there bool
	look := func() error {
		return s.pool.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", s.args(s.partition(from))...).Scan(&there)
	}
	err := s.again(ctx, func() error {
		if err := look(); err != nil || there {
			return err
		}
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if _, err := s.reshape(ctx, tx); err != nil {
				return err
			}
			sql := fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s PARTITION OF %sevent FOR VALUES FROM (%d) TO (%d)", s.partition(from), s.o.qualified(), from.UnixMilli(), from.AddDate(0, 1, 0).UnixMilli())
			_, err := tx.Exec(ctx, sql, s.args()...)
			return err
		})
	})
	switch {
	case isPg(err, "23514"): // rows of it lie in the table for the rest
		return nil
	case isPg(err, "55P03") && look() == nil && there: // another process, which had the lock, made it
		return nil
	}
	return err
}

// reshape begins a change of the events table, and tells the server's time.
func (s *Store) reshape(ctx context.Context, tx pgx.Tx) (now time.Time, err error) {
	if _, err := tx.Conn().PgConn().Exec(ctx, lockFor).ReadAll(); err != nil {
		return now, err
	}
	if _, err := tx.Exec(ctx, "LOCK TABLE "+s.o.qualified()+"event IN ACCESS EXCLUSIVE MODE", s.args()...); err != nil {
		return now, err
	}
	var ms int64
	err = tx.QueryRow(ctx, s.o.names("SELECT @now_ms()"), s.args()...).Scan(&ms)
	return time.UnixMilli(ms).UTC(), err
}

func (s *Store) partition(month time.Time) string {
	return s.o.qualified() + "event_" + month.Format("2006_01")
}

// Detach takes the partition of a month out of the events table and returns its name: a table that can be archived or
// dropped at once. Feeds that have not read it yet get [store.ErrTrimmed]. It fails for a month that is not over by the
// server's clock, for one without a partition, and rather than make writes wait for longer than a second.
func (s *Store) Detach(ctx context.Context, month time.Time) (string, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.usable(ctx); err != nil {
		return "", err
	}
	month = time.Date(month.Year(), month.Month(), 1, 0, 0, 0, 0, time.UTC)
	name := s.partition(month)
	err := s.again(ctx, func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			// With the lock no event of that month is under way any more.
			now, err := s.reshape(ctx, tx)
			if err != nil {
				return err
			}
			if month.AddDate(0, 1, 0).After(now) {
				return fmt.Errorf("%w: %s is not over", store.ErrInvalid, month.Format("2006-01"))
			}
			// Every namespace's feed must know that what lay there is gone.
			trim := fmt.Sprintf(`INSERT INTO %[1]strimmed AS t SELECT n.ns, last.epoch, last.xid, last.seq FROM %[1]snamespace n
				CROSS JOIN LATERAL (SELECT epoch, xid, seq FROM %[2]s p WHERE p.ns = n.ns ORDER BY epoch DESC, xid DESC, seq DESC LIMIT 1) last
				ON CONFLICT (ns) DO UPDATE SET epoch = excluded.epoch, xid = excluded.xid, seq = excluded.seq WHERE (t.epoch, t.xid, t.seq) < (excluded.epoch, excluded.xid, excluded.seq)`, s.o.qualified(), name)
			if _, err := tx.Exec(ctx, trim, s.args()...); err != nil {
				return err
			}
			_, err = tx.Exec(ctx, fmt.Sprintf("ALTER TABLE %sevent DETACH PARTITION %s", s.o.qualified(), name), s.args()...)
			return err
		})
	})
	return name, err
}
