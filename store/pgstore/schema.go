package pgstore

import (
	"context"
	"fmt"
	"hash/fnv"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/apitoken-go/apitoken/store"
)

// The tables have a real column for all that is selected by, so that an operator can query them. Names below start with
// @, which stands for the schema and the prefix.

// migrations are applied in order, each once, in one transaction with its number. They are never changed after a
// release: what is wrong in one is mended by the next.
var migrations = []string{migration1, migration2}

const migration1 = `
CREATE TABLE @namespace (
	ns       text COLLATE "C" PRIMARY KEY,
	head     bigint  NOT NULL DEFAULT 0,      -- N of the last state change: the one counter that orders them
	history  bigint  NOT NULL,                -- changes whenever acknowledged writes may have been lost
	epoch    integer NOT NULL DEFAULT 1,      -- rises with it, and orders events of one history behind those before
	timeline text    NOT NULL,                -- of the server that wrote it
	system   text    NOT NULL,                -- its identifier
	relation oid     NOT NULL,                -- this table's own number: another one is a dump that was put back
	moved    boolean NOT NULL DEFAULT false   -- takes no writes
);
-- A transaction that does not see what was committed after it began shares a row of this one, so that it fails where
-- moved was changed meanwhile.
CREATE TABLE @fence (ns text COLLATE "C" PRIMARY KEY, turns bigint NOT NULL DEFAULT 0);
CREATE TABLE @record (
	ns      text COLLATE "C" NOT NULL,
	kind    text COLLATE "C" NOT NULL,
	id      text COLLATE "C" NOT NULL,
	version bytea  NOT NULL,
	pos     bigint NOT NULL,                  -- 0: no state
	written bigint NOT NULL,                  -- Unix ms by this server's clock
	expires bigint NOT NULL,                  -- Unix ms, 0: never
	subject text COLLATE "C" NOT NULL,
	client  text COLLATE "C" NOT NULL,
	grant_id text COLLATE "C" NOT NULL,
	token   text COLLATE "C" NOT NULL,
	type    text COLLATE "C" NOT NULL,
	data    bytea NOT NULL,
	PRIMARY KEY (ns, kind, id)
) WITH (fillfactor = 80);
CREATE INDEX ON @record (ns, pos) WHERE pos > 0;
CREATE INDEX ON @record (ns, kind, expires) WHERE expires > 0;
CREATE INDEX ON @record (ns, kind, subject, id) WHERE subject <> '';
CREATE INDEX ON @record (ns, kind, client, id) WHERE client <> '';
CREATE INDEX ON @record (ns, kind, token, id) WHERE token <> '';
CREATE SEQUENCE @event_seq CACHE 32;
CREATE TABLE @event (
	ns      text COLLATE "C" NOT NULL,
	epoch   integer NOT NULL,
	xid     xid8   NOT NULL,
	seq     bigint NOT NULL,
	id      text COLLATE "C" NOT NULL,
	version bytea  NOT NULL,
	written bigint NOT NULL,
	expires bigint NOT NULL,
	subject text COLLATE "C" NOT NULL,
	client  text COLLATE "C" NOT NULL,
	grant_id text COLLATE "C" NOT NULL,
	token   text COLLATE "C" NOT NULL,
	type    text COLLATE "C" NOT NULL,
	data    bytea NOT NULL
) PARTITION BY RANGE (written);
CREATE TABLE @event_rest PARTITION OF @event DEFAULT;
CREATE INDEX ON @event (ns, epoch, xid, seq);
CREATE INDEX ON @event (ns, subject, epoch, xid, seq) WHERE subject <> '';
CREATE INDEX ON @event (ns, client, epoch, xid, seq) WHERE client <> '';
CREATE INDEX ON @event (ns, grant_id, epoch, xid, seq) WHERE grant_id <> '';
CREATE INDEX ON @event (ns, token, epoch, xid, seq) WHERE token <> '';
CREATE INDEX ON @event (ns, type, epoch, xid, seq);
CREATE INDEX ON @event (ns, expires) WHERE expires > 0;
CREATE TABLE @trimmed (
	ns    text COLLATE "C" PRIMARY KEY,
	epoch integer NOT NULL,
	xid   xid8    NOT NULL,
	seq   bigint  NOT NULL
);

-- now_ms is the store's clock.
CREATE FUNCTION @now_ms() RETURNS bigint LANGUAGE sql VOLATILE AS
	$$ SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint $$;

-- timeline is that of the server which answers. On a replica it fails: nothing is ever read from one.
CREATE FUNCTION @timeline() RETURNS text LANGUAGE sql VOLATILE AS
	$$ SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) $$;

-- apply is the one write. Its errors carry SQLSTATEs of their own: AP001 conflict, AP002 done before, AP003 moved,
-- AP004 another history, AP005 the fixed fields of a record were to change, AP006 no namespace.
CREATE FUNCTION @apply(
	in_ns text, change bytea, lock_key bigint, state boolean, channel text,
	p_kind text[], p_id text[], p_expect bytea[], p_state boolean[], p_expires bigint[],
	p_subject text[], p_client text[], p_grant text[], p_token text[], p_type text[], p_data bytea[],
	e_id text[], e_expires bigint[],
	e_subject text[], e_client text[], e_grant text[], e_token text[], e_type text[], e_data bytea[],
	OUT out_head bigint, OUT out_history bigint, OUT out_now bigint
) LANGUAGE plpgsql AS $$
DECLARE
	n @namespace%ROWTYPE;
	old @record%ROWTYPE;
	at bigint;
BEGIN
	-- A fence that waits for writes under way takes the same lock alone.
	PERFORM pg_advisory_xact_lock_shared(lock_key);
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		-- What is read below is of before the lock was had: 40001 if that is no longer true.
		PERFORM 1 FROM @fence WHERE ns = in_ns FOR SHARE;
	END IF;
	IF state THEN
		SELECT * INTO n FROM @namespace WHERE ns = in_ns FOR UPDATE;
	ELSE
		SELECT * INTO n FROM @namespace WHERE ns = in_ns;
	END IF;
	IF NOT FOUND THEN RAISE EXCEPTION 'no namespace' USING ERRCODE = 'AP006'; END IF;
	IF n.timeline <> @timeline() OR n.relation <> '@namespace'::regclass THEN RAISE EXCEPTION 'another history' USING ERRCODE = 'AP004'; END IF;
	IF n.moved THEN
		IF EXISTS (SELECT 1 FROM unnest(p_kind, p_id) AS k(kind, id) JOIN @record r ON r.ns = in_ns AND r.kind = k.kind AND r.id = k.id WHERE r.version = change) THEN
			RAISE EXCEPTION 'done before' USING ERRCODE = 'AP002';
		END IF;
		RAISE EXCEPTION 'moved' USING ERRCODE = 'AP003';
	END IF;
	out_now := @now_ms();
	FOR i IN 1 .. coalesce(array_length(p_id, 1), 0) LOOP
		at := 0;
		IF p_state[i] THEN
			n.head := greatest(n.head + 1, out_now << 16);
			at := n.head;
		END IF;
		IF p_expect[i] = '\x00000000000000000000000000000000'::bytea THEN
			INSERT INTO @record (ns, kind, id, version, pos, written, expires, subject, client, grant_id, token, type, data)
			VALUES (in_ns, p_kind[i], p_id[i], change, at, out_now, p_expires[i], p_subject[i], p_client[i], p_grant[i], p_token[i], p_type[i], p_data[i])
			ON CONFLICT DO NOTHING;
		ELSE
			UPDATE @record r SET version = change, pos = at, written = out_now, expires = p_expires[i], data = p_data[i]
			WHERE r.ns = in_ns AND r.kind = p_kind[i] AND r.id = p_id[i] AND r.version = p_expect[i]
				AND r.subject = p_subject[i] AND r.client = p_client[i] AND r.grant_id = p_grant[i] AND r.token = p_token[i] AND r.type = p_type[i];
		END IF;
		IF NOT FOUND THEN
			IF EXISTS (SELECT 1 FROM unnest(p_kind, p_id) WITH ORDINALITY AS k(kind, id, o) JOIN @record r ON r.ns = in_ns AND r.kind = k.kind AND r.id = k.id WHERE r.version = change AND k.o >= i) THEN
				RAISE EXCEPTION 'done before' USING ERRCODE = 'AP002';
			END IF;
			SELECT * INTO old FROM @record r WHERE r.ns = in_ns AND r.kind = p_kind[i] AND r.id = p_id[i];
			IF FOUND AND old.version = p_expect[i] THEN
				RAISE EXCEPTION 'fixed fields' USING ERRCODE = 'AP005';
			END IF;
			RAISE EXCEPTION 'conflict' USING ERRCODE = 'AP001';
		END IF;
	END LOOP;
	IF array_length(e_id, 1) > 0 THEN
		INSERT INTO @event (ns, epoch, xid, seq, id, version, written, expires, subject, client, grant_id, token, type, data)
		SELECT in_ns, n.epoch, pg_current_xact_id(), nextval('@event_seq'), e.id, change, out_now, e.expires, e.subject, e.client, e.grant_id, e.token, e.type, e.data
		FROM (SELECT * FROM unnest(e_id, e_expires, e_subject, e_client, e_grant, e_token, e_type, e_data) WITH ORDINALITY
			AS u(id, expires, subject, client, grant_id, token, type, data, o) ORDER BY o) e;
	END IF;
	IF state THEN
		UPDATE @namespace SET head = n.head WHERE ns = in_ns;
		PERFORM pg_notify(channel, in_ns);
	END IF;
	out_head := n.head;
	out_history := n.history;
END $$;

-- move raises or lowers the fence, and returns when writes under way have ended.
CREATE FUNCTION @move(in_ns text, lock_key bigint, is_on boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock(lock_key);
	UPDATE @namespace SET moved = is_on WHERE ns = in_ns;
	UPDATE @fence SET turns = turns + 1 WHERE ns = in_ns;
END $$;

-- purge removes expired records of a kind, or events.
CREATE FUNCTION @purge(in_ns text, lock_key bigint, in_kind text, before bigint, most integer, OUT gone integer) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared(lock_key); -- the fence, as in apply
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		PERFORM 1 FROM @fence WHERE ns = in_ns FOR SHARE;
	END IF;
	IF (SELECT moved FROM @namespace WHERE ns = in_ns) THEN RAISE EXCEPTION 'moved' USING ERRCODE = 'AP003'; END IF;
	before := least(before, @now_ms() + 1);
	IF in_kind <> 'event' THEN
		DELETE FROM @record WHERE ctid = ANY (ARRAY(SELECT ctid FROM @record
			WHERE ns = in_ns AND kind = in_kind AND expires > 0 AND expires < before ORDER BY expires LIMIT most FOR UPDATE SKIP LOCKED));
		GET DIAGNOSTICS gone = ROW_COUNT;
		RETURN;
	END IF;
	WITH old AS (DELETE FROM @event WHERE (tableoid, ctid) IN (SELECT tableoid, ctid FROM @event
			WHERE ns = in_ns AND expires > 0 AND expires < before ORDER BY expires LIMIT most FOR UPDATE SKIP LOCKED) RETURNING epoch, xid, seq),
		last AS (SELECT epoch, xid, seq FROM old ORDER BY epoch DESC, xid DESC, seq DESC LIMIT 1),
		kept AS (INSERT INTO @trimmed AS t SELECT in_ns, epoch, xid, seq FROM last ON CONFLICT (ns) DO UPDATE SET epoch = excluded.epoch, xid = excluded.xid, seq = excluded.seq
			WHERE (t.epoch, t.xid, t.seq) < (excluded.epoch, excluded.xid, excluded.seq))
	SELECT count(*) INTO gone FROM old;
END $$;
`

// migration2 makes the one write take several changes. Processes of the version before still call the one of a single change.
const migration2 = `
-- apply_all writes all changes that it is given, or none; puts are in the order of their keys, each of another record. Its errors carry
-- SQLSTATEs of their own: AP001 conflict, AP002 one was done before, AP003 moved, AP004 another history, AP005 the fixed fields of a
-- record were to change, AP006 no namespace.
CREATE FUNCTION @apply_all(
	in_ns text, lock_key bigint, state boolean, channel text,
	p_change bytea[], p_kind text[], p_id text[], p_expect bytea[], p_state boolean[], p_expires bigint[],
	p_subject text[], p_client text[], p_grant text[], p_token text[], p_type text[], p_data bytea[],
	e_change bytea[], e_id text[], e_expires bigint[],
	e_subject text[], e_client text[], e_grant text[], e_token text[], e_type text[], e_data bytea[],
	OUT out_head bigint, OUT out_history bigint, OUT out_now bigint
) LANGUAGE plpgsql AS $$
DECLARE
	n @namespace%ROWTYPE;
	old @record%ROWTYPE;
	p record;
	at bigint;
BEGIN
	-- A fence that waits for writes under way takes the same lock alone.
	PERFORM pg_advisory_xact_lock_shared(lock_key);
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		-- What is read below is of before the lock was had: 40001 if that is no longer true.
		PERFORM 1 FROM @fence WHERE ns = in_ns FOR SHARE;
	END IF;
	IF state THEN
		SELECT * INTO n FROM @namespace WHERE ns = in_ns FOR UPDATE;
	ELSE
		SELECT * INTO n FROM @namespace WHERE ns = in_ns;
	END IF;
	IF NOT FOUND THEN RAISE EXCEPTION 'no namespace' USING ERRCODE = 'AP006'; END IF;
	IF n.timeline <> @timeline() OR n.relation <> '@namespace'::regclass THEN RAISE EXCEPTION 'another history' USING ERRCODE = 'AP004'; END IF;
	IF n.moved THEN
		IF EXISTS (SELECT 1 FROM unnest(p_change, p_kind, p_id) AS k(change, kind, id) JOIN @record r ON r.ns = in_ns AND r.kind = k.kind AND r.id = k.id WHERE r.version = k.change) THEN
			RAISE EXCEPTION 'done before' USING ERRCODE = 'AP002';
		END IF;
		RAISE EXCEPTION 'moved' USING ERRCODE = 'AP003';
	END IF;
	out_now := @now_ms();
	FOR p IN SELECT * FROM unnest(p_change, p_kind, p_id, p_expect, p_state, p_expires, p_subject, p_client, p_grant, p_token, p_type, p_data) WITH ORDINALITY
		AS u(change, kind, id, expect, state, expires, subject, client, grant_id, token, type, data, o) ORDER BY o
	LOOP
		at := 0;
		IF p.state THEN
			n.head := greatest(n.head + 1, out_now << 16);
			at := n.head;
		END IF;
		IF p.expect = '\x00000000000000000000000000000000'::bytea THEN
			INSERT INTO @record (ns, kind, id, version, pos, written, expires, subject, client, grant_id, token, type, data)
			VALUES (in_ns, p.kind, p.id, p.change, at, out_now, p.expires, p.subject, p.client, p.grant_id, p.token, p.type, p.data)
			ON CONFLICT DO NOTHING;
		ELSE
			UPDATE @record r SET version = p.change, pos = at, written = out_now, expires = p.expires, data = p.data
			WHERE r.ns = in_ns AND r.kind = p.kind AND r.id = p.id AND r.version = p.expect
				AND r.subject = p.subject AND r.client = p.client AND r.grant_id = p.grant_id AND r.token = p.token AND r.type = p.type;
		END IF;
		IF NOT FOUND THEN
			IF EXISTS (SELECT 1 FROM unnest(p_change, p_kind, p_id) WITH ORDINALITY AS k(change, kind, id, o) JOIN @record r ON r.ns = in_ns AND r.kind = k.kind AND r.id = k.id WHERE r.version = k.change AND k.o >= p.o) THEN
				RAISE EXCEPTION 'done before' USING ERRCODE = 'AP002';
			END IF;
			SELECT * INTO old FROM @record r WHERE r.ns = in_ns AND r.kind = p.kind AND r.id = p.id;
			IF FOUND AND old.version = p.expect THEN
				RAISE EXCEPTION 'fixed fields' USING ERRCODE = 'AP005';
			END IF;
			RAISE EXCEPTION 'conflict' USING ERRCODE = 'AP001';
		END IF;
	END LOOP;
	IF array_length(e_id, 1) > 0 THEN
		INSERT INTO @event (ns, epoch, xid, seq, id, version, written, expires, subject, client, grant_id, token, type, data)
		SELECT in_ns, n.epoch, pg_current_xact_id(), nextval('@event_seq'), e.id, e.change, out_now, e.expires, e.subject, e.client, e.grant_id, e.token, e.type, e.data
		FROM (SELECT * FROM unnest(e_change, e_id, e_expires, e_subject, e_client, e_grant, e_token, e_type, e_data) WITH ORDINALITY
			AS u(change, id, expires, subject, client, grant_id, token, type, data, o) ORDER BY o) e;
	END IF;
	IF state THEN
		UPDATE @namespace SET head = n.head WHERE ns = in_ns;
		PERFORM pg_notify(channel, in_ns);
	END IF;
	out_head := n.head;
	out_history := n.history;
END $$;
`

// names fills a template.
func (o *Options) names(sql string) string { return strings.ReplaceAll(sql, "@", o.qualified()) }

func (o *Options) qualified() string {
	if o.Schema == "" {
		return o.Prefix
	}
	return o.Schema + "." + o.Prefix
}

var plainName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,30}$`)

func (o *Options) check() error {
	if o.Prefix == "" {
		o.Prefix = "apitoken_"
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if !plainName.MatchString(o.Prefix) || o.Schema != "" && !plainName.MatchString(o.Schema) {
		return fmt.Errorf("%w: Schema %q and Prefix %q must be plain names in lower case, at most 31 characters", store.ErrInvalid, o.Schema, o.Prefix)
	}
	return nil
}

// Migrations is the SQL that Migrate runs, for those who let a DBA run it: in one transaction, once, before the first New.
func Migrations(o *Options) (string, error) {
	opt := o.orDefault()
	if err := opt.check(); err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("BEGIN;\n")
	if opt.Schema != "" {
		b.WriteString("CREATE SCHEMA IF NOT EXISTS " + opt.Schema + ";\n")
	}
	b.WriteString(opt.names("CREATE TABLE @version (version integer PRIMARY KEY);\n"))
	for i, m := range migrations {
		b.WriteString(opt.names(m))
		fmt.Fprintf(&b, "INSERT INTO %sversion VALUES (%d);\n", opt.qualified(), i+1)
	}
	b.WriteString("COMMIT;\n")
	return b.String(), nil
}

// Migrate brings the tables to what this version of the package needs. It is safe from many processes at once: one does
// it, the others wait. Where nothing is to be done it needs no right to make tables, and no lock.
func Migrate(ctx context.Context, pool *pgxpool.Pool, o *Options) error {
	opt := o.orDefault()
	if err := opt.check(); err != nil {
		return err
	}
	e := &engine{pool: pool, o: opt}
	at, err := e.version(ctx)
	switch {
	case err == nil && at == len(migrations):
		return nil
	case err != nil && !noTable(err):
		return e.cause(err)
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", e.args(lockKey(opt.qualified(), "migrate"))...); err != nil {
			return fmt.Errorf("pgstore: lock: %w", err)
		}
		if opt.Schema != "" {
			// Even IF NOT EXISTS needs the right to make schemas, which whoever has a schema of his own seldom has.
			var there bool
			if err := tx.QueryRow(ctx, "SELECT to_regnamespace($1) IS NOT NULL", e.args(opt.Schema)...).Scan(&there); err != nil {
				return fmt.Errorf("pgstore: schema: %w", err)
			}
			if !there {
				if _, err := tx.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+opt.Schema, e.args()...); err != nil {
					return fmt.Errorf("pgstore: schema: %w", err)
				}
			}
		}
		if _, err := tx.Exec(ctx, opt.names("CREATE TABLE IF NOT EXISTS @version (version integer PRIMARY KEY)"), e.args()...); err != nil {
			return fmt.Errorf("pgstore: version table: %w", err)
		}
		if err := tx.QueryRow(ctx, opt.names("SELECT coalesce(max(version), 0) FROM @version"), e.args()...).Scan(&at); err != nil {
			return fmt.Errorf("pgstore: version: %w", err)
		}
		if at > len(migrations) {
			return fmt.Errorf("pgstore: the tables are of version %d, this program knows %d: it is too old", at, len(migrations))
		}
		for i := at; i < len(migrations); i++ {
			// Several statements at once: the simple protocol.
			if _, err := tx.Conn().PgConn().Exec(ctx, opt.names(migrations[i])).ReadAll(); err != nil {
				return fmt.Errorf("pgstore: migration %d: %w", i+1, err)
			}
			if _, err := tx.Exec(ctx, opt.names("INSERT INTO @version VALUES ($1)"), e.args(i+1)...); err != nil {
				return fmt.Errorf("pgstore: migration %d: %w", i+1, err)
			}
		}
		return nil
	})
}

// lockKey is the number of an advisory lock.
func lockKey(parts ...string) int64 {
	h := fnv.New64a()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return int64(h.Sum64())
}
