package pgstore

import (
	"context"
	"fmt"
	"hash/fnv"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The tables have a real column for all that is selected by, so that an operator can query them. Names below start with
// @, which stands for the schema and the prefix.

// migrations are applied in order, each once, in one transaction with its number. They are never changed after a
// release: what is wrong in one is mended by the next.
var migrations = []string{migration1}

const migration1 = `
CREATE TABLE @namespace (
	ns       text COLLATE "C" PRIMARY KEY,
	head     bigint  NOT NULL DEFAULT 0,      -- N of the last state change: the one counter that orders them
	history  bigint  NOT NULL,                -- changes whenever acknowledged writes may have been lost
	epoch    integer NOT NULL DEFAULT 1,      -- rises with it, and orders events of one history behind those before
	timeline text    NOT NULL,                -- of the server that wrote it
	system   text    NOT NULL,                -- its identifier
	moved    boolean NOT NULL DEFAULT false   -- takes no writes
);
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
	IF state THEN
		SELECT * INTO n FROM @namespace WHERE ns = in_ns FOR UPDATE;
	ELSE
		SELECT * INTO n FROM @namespace WHERE ns = in_ns;
	END IF;
	IF NOT FOUND THEN RAISE EXCEPTION 'no namespace' USING ERRCODE = 'AP006'; END IF;
	IF n.timeline <> @timeline() THEN RAISE EXCEPTION 'another timeline' USING ERRCODE = 'AP004'; END IF;
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
	if !plainName.MatchString(o.Prefix) || o.Schema != "" && !plainName.MatchString(o.Schema) {
		return fmt.Errorf("%w: Schema %q and Prefix %q must be plain names in lower case, at most 31 characters", errInvalid, o.Schema, o.Prefix)
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
	b.WriteString(opt.names("BEGIN;\nCREATE TABLE @version (version integer PRIMARY KEY);\n"))
	for i, m := range migrations {
		b.WriteString(opt.names(m))
		fmt.Fprintf(&b, "INSERT INTO %sversion VALUES (%d);\n", opt.qualified(), i+1)
	}
	b.WriteString("COMMIT;\n")
	return b.String(), nil
}

// Migrate brings the tables to what this version of the package needs. It is safe from many processes at once: one does
// it, the others wait.
func Migrate(ctx context.Context, pool *pgxpool.Pool, o *Options) error {
	opt := o.orDefault()
	if err := opt.check(); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", lockKey(opt.qualified(), "migrate")); err != nil {
			return fmt.Errorf("pgstore: lock: %w", err)
		}
		if opt.Schema != "" {
			if _, err := tx.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+opt.Schema); err != nil {
				return fmt.Errorf("pgstore: schema: %w", err)
			}
		}
		if _, err := tx.Exec(ctx, opt.names("CREATE TABLE IF NOT EXISTS @version (version integer PRIMARY KEY)")); err != nil {
			return fmt.Errorf("pgstore: version table: %w", err)
		}
		var at int
		if err := tx.QueryRow(ctx, opt.names("SELECT coalesce(max(version), 0) FROM @version")).Scan(&at); err != nil {
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
			if _, err := tx.Exec(ctx, opt.names("INSERT INTO @version VALUES ($1)"), i+1); err != nil {
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
