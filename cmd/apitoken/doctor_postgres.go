package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// diagnosePostgres looks at the server's settings. The tables are there, or the store would not have opened.
func diagnosePostgres(ctx context.Context, d *diagnosis, pool *pgxpool.Pool) {
	var version, fsync, pages string
	var replica bool
	var now time.Time
	before := time.Now()
	err := pool.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('fsync'), current_setting('full_page_writes'), pg_is_in_recovery(), clock_timestamp()`).
		Scan(&version, &fsync, &pages, &replica, &now)
	if err != nil {
		d.say("warn", "server", "", "its settings cannot be read: %v", err)
		return
	}
	d.say("ok", "schema", "", "the tables are there, on Postgres %s", version)
	if fsync != "on" || pages != "on" {
		d.say("bad", "durability", "Turn fsync and full_page_writes on: a crash of the machine may damage the database.", "fsync is %s, full_page_writes is %s", fsync, pages)
	} else {
		d.say("ok", "durability", "", "what is acknowledged is on the disk")
	}
	if replica {
		d.say("bad", "primary", "Connect to the primary: target_session_attrs=read-write.", "this server is a replica, and takes no writes")
	}
	// The clock was read between the two readings of ours.
	if off := max(before.Sub(now), time.Until(now)); off > 10*time.Second {
		d.say("bad", "clock", "Set the clocks by NTP.", "the server's clock differs from this machine's by %s", off.Round(time.Second))
	} else {
		d.say("ok", "clock", "", "the server's clock agrees with this machine's")
	}
}
