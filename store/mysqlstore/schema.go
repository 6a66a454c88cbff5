package mysqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// The tables have a real column for all that is selected by, so that an operator can query them (mysql
// --skip-binary-as-hex). They are binary strings: any collation of text would take some of them for the same. Names begin
// with @, which stands for the prefix.
//
// The server has no transactions for these, so that each may be repeated. What they make is never changed after a release.
var schema = []string{
	`CREATE TABLE IF NOT EXISTS @version (version INT NOT NULL PRIMARY KEY) ENGINE=InnoDB`,
	`CREATE TABLE IF NOT EXISTS @namespace (
	ns      VARBINARY(255) NOT NULL PRIMARY KEY,
	head    BIGINT  NOT NULL COMMENT 'N of the last state change',
	history BIGINT  NOT NULL COMMENT 'changes whenever acknowledged writes may have been lost',
	place   BIGINT  NOT NULL COMMENT 'of the last event',
	trimmed BIGINT  NOT NULL COMMENT 'place of the last event that was purged',
	moved   TINYINT NOT NULL COMMENT '1: takes no writes',
	origin  VARBINARY(255) NOT NULL COMMENT 'of the server and the table when this row was written'
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC`,
	`CREATE TABLE IF NOT EXISTS @record (
	ns       VARBINARY(255) NOT NULL,
	kind     VARBINARY(64)  NOT NULL,
	id       VARBINARY(255) NOT NULL,
	version  BINARY(16)     NOT NULL,
	pos      BIGINT NOT NULL COMMENT '0: no state',
	written  BIGINT NOT NULL COMMENT 'Unix ms by the server''s clock',
	expires  BIGINT NOT NULL COMMENT 'Unix ms, 0: never',
	subject  VARBINARY(512) NOT NULL,
	client   VARBINARY(512) NOT NULL,
	grant_id VARBINARY(512) NOT NULL,
	token    VARBINARY(512) NOT NULL,
	type     VARBINARY(512) NOT NULL,
	data     BLOB NOT NULL,
	PRIMARY KEY (ns, kind, id),
	KEY pos (ns, pos),
	KEY expires (ns, kind, expires),
	KEY subject (ns, kind, subject, id),
	KEY client (ns, kind, client, id),
	KEY token (ns, kind, token, id)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC`,
	`CREATE TABLE IF NOT EXISTS @event (
	ns       VARBINARY(255) NOT NULL,
	place    BIGINT NOT NULL,
	id       VARBINARY(255) NOT NULL,
	version  BINARY(16)     NOT NULL,
	written  BIGINT NOT NULL,
	expires  BIGINT NOT NULL,
	subject  VARBINARY(512) NOT NULL,
	client   VARBINARY(512) NOT NULL,
	grant_id VARBINARY(512) NOT NULL,
	token    VARBINARY(512) NOT NULL,
	type     VARBINARY(512) NOT NULL,
	data     BLOB NOT NULL,
	PRIMARY KEY (ns, place),
	KEY subject (ns, subject, place),
	KEY client (ns, client, place),
	KEY grant_id (ns, grant_id, place),
	KEY token (ns, token, place),
	KEY type (ns, type, place),
	KEY expires (ns, expires)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC`,
	`INSERT IGNORE INTO @version VALUES (1)`,
}

const version = 1

// Migrations is the SQL that Open runs unless Options.Manual is set, for those who let a DBA run it: once, before the first
// Open. It may be repeated.
func Migrations(o *Options) (string, error) {
	opt, err := o.orDefault()
	if err != nil {
		return "", err
	}
	return opt.names(strings.Join(schema, ";\n") + ";\n"), nil
}

func (o *Options) names(sql string) string { return strings.ReplaceAll(sql, "@", o.Prefix) }

// migrate brings the tables to what this version of the package needs. Each statement may be repeated, so that many
// processes may do it at once.
func migrate(ctx context.Context, db *sql.DB, o *Options) error {
	var at sql.NullInt64
	look := func() error {
		return db.QueryRowContext(ctx, o.names("SELECT MAX(version) FROM @version")).Scan(&at)
	}
	err := look()
	if missing := isCode(err, 1146); (missing || err == nil && !at.Valid) && !o.Manual {
		for _, text := range schema {
			if _, err := db.ExecContext(ctx, o.names(text)); err != nil {
				return err
			}
		}
		err = look()
	}
	switch {
	case isCode(err, 1146):
		return fmt.Errorf("%w: run what Migrations prints", ErrMissing)
	case err != nil:
		return err
	case at.Int64 != version:
		return fmt.Errorf("%w: tables of version %d, this program needs %d", ErrMissing, at.Int64, version)
	}
	return nil
}
