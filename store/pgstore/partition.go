package pgstore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Partition makes monthly partitions of the events table from this month on, so many of them. Call it at start and now and
// then: an event of a month without one lies in a table for the rest, from which it can only be purged, not detached.
// Months that have rows in that table already are left out.
func (s *Store) Partition(ctx context.Context, months int) error {
	now := time.Now().UTC()
	for i := range months {
		from := time.Date(now.Year(), now.Month()+time.Month(i), 1, 0, 0, 0, 0, time.UTC)
		to := from.AddDate(0, 1, 0)
		sql := fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s PARTITION OF %sevent FOR VALUES FROM (%d) TO (%d)", s.partition(from), s.o.qualified(), from.UnixMilli(), to.UnixMilli())
		if _, err := s.pool.Exec(ctx, sql, s.args()...); err != nil && !isPg(err, "23514") { // rows of it lie in the default partition
			return s.cause(err)
		}
	}
	return nil
}

func (s *Store) partition(month time.Time) string {
	return s.o.qualified() + "event_" + month.Format("2006_01")
}

// Detach takes the partition of a month out of the events table and returns its name: a table that can be archived or
// dropped at once. Feeds that have not read it yet get ErrTrimmed. It fails for a month that is not over, and for one
// without a partition.
func (s *Store) Detach(ctx context.Context, month time.Time) (string, error) {
	month = time.Date(month.Year(), month.Month(), 1, 0, 0, 0, 0, time.UTC)
	if month.AddDate(0, 1, 0).After(time.Now()) {
		return "", fmt.Errorf("%w: %s is not over", errInvalid, month.Format("2006-01"))
	}
	name := s.partition(month)
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// Every namespace's feed must know that what lay there is gone.
		trim := fmt.Sprintf(`INSERT INTO %[1]strimmed AS t SELECT DISTINCT ON (ns) ns, epoch, xid, seq FROM %[2]s ORDER BY ns, epoch DESC, xid DESC, seq DESC
			ON CONFLICT (ns) DO UPDATE SET epoch = excluded.epoch, xid = excluded.xid, seq = excluded.seq WHERE (t.epoch, t.xid, t.seq) < (excluded.epoch, excluded.xid, excluded.seq)`, s.o.qualified(), name)
		if _, err := tx.Exec(ctx, trim, s.args()...); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, fmt.Sprintf("ALTER TABLE %sevent DETACH PARTITION %s", s.o.qualified(), name), s.args()...)
		return err
	})
	return name, s.cause(err)
}
