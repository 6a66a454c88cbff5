package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"database/sql"

	"github.com/spf13/cobra"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/admin"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

// made is a backup that was read again.
type backupInfo struct {
	File   string `json:"file"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	Issuer string `json:"issuer"`
}

func (a *app) backupCommand() *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "Copy a store into a file, while it is in use too", Args: exactly(1, "the file to make"),
		Long: `backup writes a consistent copy of a bbolt or SQLite store into a new file of mode 0600, opens the copy to see that it can be read,
and prints its SHA-256. A running service on bbolt makes it by its admin API. Keep the file that seals the signing keys in
another place than the copy. Postgres is backed up by its own means, pg_dump or pg_basebackup.`,
		RunE: func(c *cobra.Command, args []string) error { return a.backup(c.Context(), args[0]) },
	}
}

func (a *app) backup(ctx context.Context, to string) (err error) {
	if _, err := os.Lstat(to); err == nil {
		return usage("Give a name that is free: a backup is never written over.", "%s exists", to)
	}
	dir, err := os.MkdirTemp(filepath.Dir(to), ".apitoken-backup-") // mode 0700: nobody reads the copy before it has its mode
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	part := filepath.Join(dir, "copy")
	if err := a.copyStore(ctx, part); err != nil {
		return err
	}
	info := backupInfo{File: to}
	if info.SHA256, info.Bytes, err = digest(part); err != nil {
		return err
	}
	f, err := a.readCopy(ctx, part)
	if err != nil {
		return &failure{code: failed, what: "the copy cannot be read", err: err, do: "Look at the store: apitoken doctor."}
	}
	info.Issuer = f.Issuer
	if err := os.Link(part, to); err != nil { // never over a file that appeared meanwhile
		if errors.Is(err, fs.ErrExist) {
			return usage("Give a name that is free.", "%s exists", to)
		}
		if err := os.Rename(part, to); err != nil {
			return err
		}
	}
	if err := syncDir(filepath.Dir(to)); err != nil {
		return err
	}
	if a.json {
		return a.print(info)
	}
	a.list("backup", info.File, "of", info.Issuer, "size", size(uint64(info.Bytes)), "SHA-256", info.SHA256)
	return nil
}

// copyStore makes the file part hold a copy of the store.
func (a *app) copyStore(ctx context.Context, part string) error {
	at, spec := setting(a.admin, "APITOKEN_ADMIN"), ""
	if at == "" {
		var err error
		if spec, err = a.storeSpec(); err != nil {
			return err
		}
		switch engine, path := engineOf(spec); {
		case spec != "" && !engine.isFile():
			return usage("Use the engine's own tool, such as pg_basebackup, mariadb-backup, etcdctl snapshot, or a copy of Redis's append-only files: docs/backup.md.", "%s is backed up by its own means", engine)
		case spec != "" && answers(path+admin.Suffix):
			at = path + admin.Suffix
		case engine == sqlite:
			return vacuumInto(ctx, path, part)
		}
	}
	out, err := os.OpenFile(part, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	bar := a.bar(-1, "backup", true)
	write := func(make func(context.Context, io.Writer) error) error {
		err := make(ctx, io.MultiWriter(out, bar))
		_ = bar.Finish() // only what is shown
		return errors.Join(err, out.Sync(), out.Close())
	}
	if at != "" {
		s, err := a.dial(at)
		if err != nil {
			return errors.Join(err, out.Close())
		}
		return write(s.Backup)
	}
	if spec == "" {
		return errors.Join(usage("Give --store FILE, or --admin SOCKET-OR-URL.", "which store?"), out.Close())
	}
	st, err := a.open(ctx, spec, false)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	return errors.Join(write(st.backup), st.close())
}

// vacuumInto makes a copy by SQLite's own means, beside whoever uses the file.
func vacuumInto(ctx context.Context, path, to string) error {
	if _, err := os.Stat(path); err != nil {
		return &failure{code: notFound, what: "there is no store at " + path, do: "Give the file of the service's store by --store."}
	}
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(path)+"?mode=rw&_pragma=busy_timeout(10000)")
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", to); err != nil {
		return &failure{code: failed, what: "SQLite made no copy", err: err}
	}
	if err := os.Chmod(to, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func digest(path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	_ = f.Sync() // not every system can
	return f.Close()
}

// readCopy opens a copy that nobody uses, as a store, and reads what it says of its service. SQLite writes beside what it opens:
// the copy lies in a directory of its own.
func (a *app) readCopy(ctx context.Context, path string) (*facts, error) {
	st, err := a.open(ctx, path, true)
	if err != nil {
		return nil, err
	}
	f, err := factsOf(ctx, st)
	return f, errors.Join(err, st.close())
}

func (a *app) restoreCommand() *cobra.Command {
	var accept string
	var yes bool
	c := &cobra.Command{
		Use: "restore [BACKUP]", Short: "Put a backup in place of a store, and say what becomes of what was lost",
		Long: `restore puts a backup in place of the file that --store names. The file that lies there is kept beside it, with the time in its name.
The service must be stopped.

A backup lacks the revocations made since it was taken, so that no service starts on it until somebody chooses:
  --accept revoke    every session, token and API key made before now ends
  --accept replayed  nothing ends: nothing was revoked since, or you revoke it again before the service serves
Without --accept the service's Config.Restored chooses at its start. Without BACKUP the choice is made for a store that was put back
by other means, a database on Postgres too.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 0 && accept == "" {
				return usage("Such as restore tokens-monday.db --store tokens.db --accept revoke.", "restore takes a backup")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			choice, ok := map[string]apitoken.RestoreChoice{"": apitoken.RefuseRestored, "revoke": apitoken.RevokeOnRestore, "replayed": apitoken.ReplayedRestored}[accept]
			if !ok {
				return usage("It is revoke or replayed.", "--accept cannot be read")
			}
			return a.restore(c.Context(), append(args, "")[0], choice, yes)
		},
	}
	c.Flags().StringVar(&accept, "accept", "", "what becomes of what was lost: `revoke` or replayed")
	c.Flags().BoolVar(&yes, "yes", false, "replace the file that is there")
	return c
}

func (a *app) restore(ctx context.Context, backup string, choice apitoken.RestoreChoice, yes bool) error {
	spec, err := a.storeSpec()
	if err != nil {
		return err
	}
	engine, path := engineOf(spec)
	switch {
	case spec == "":
		return usage("Give --store FILE.", "which store?")
	case !engine.isFile() && backup != "":
		return usage("Use the engine's own tool, then restore --accept without a backup: docs/backup.md.", "%s is restored by its own means", engine)
	case engine.isFile() && answers(path+admin.Suffix):
		return &failure{code: unavailable, what: "a service runs on " + path, do: "Stop it first."}
	}
	kept := ""
	if backup != "" {
		if kept, err = a.putBack(ctx, backup, path, yes); err != nil {
			return err
		}
	}
	if choice != apitoken.RefuseRestored {
		if err := a.accept(ctx, spec, path, choice); err != nil {
			return err
		}
	}
	chosen := map[apitoken.RestoreChoice]string{apitoken.RefuseRestored: "open", apitoken.RevokeOnRestore: "revoke", apitoken.ReplayedRestored: "replayed"}[choice]
	if a.json {
		return a.print(map[string]string{"store": shownSpec(spec, path), "kept": kept, "accepted": chosen})
	}
	a.list("store", shownSpec(spec, path), "from", backup, "kept", kept, "choice", map[string]string{
		"open":     "open: the service refuses to start until Config.Restored says, or restore --accept",
		"revoke":   "every session, token and API key made before now has ended",
		"replayed": "nothing was ended"}[chosen])
	return nil
}

// shownSpec is a store fit to be shown: no URL, which may hold a password.
func shownSpec(spec, path string) string {
	if engine, _ := engineOf(spec); !engine.isFile() {
		return string(engine)
	}
	return cmp.Or(path, spec)
}

// accept starts a service with a choice, once.
func (a *app) accept(ctx context.Context, spec, path string, choice apitoken.RestoreChoice) error {
	st, err := a.open(ctx, spec, false)
	if err != nil {
		return err
	}
	f, err := factsOf(ctx, st)
	if err != nil {
		return errors.Join(err, st.close())
	}
	svc, err := a.start(ctx, st, path, f, nil, choice)
	if err != nil {
		return errors.Join(err, st.close())
	}
	return errors.Join(svc.Close(), st.close())
}

// putBack makes the file at path hold the backup, and returns where the old one lies.
func (a *app) putBack(ctx context.Context, backup, path string, yes bool) (kept string, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".apitoken-restore-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	part, look := filepath.Join(dir, "new"), filepath.Join(dir, "look")
	if err := a.copyFile(backup, part); err != nil {
		return "", err
	}
	// A copy of the copy is opened, since opening may write.
	if err := a.copyFile(part, look); err != nil {
		return "", err
	}
	if _, err := a.readCopy(ctx, look); err != nil {
		return "", &failure{code: misused, what: backup + " is no backup of a store", err: err}
	}
	old, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", errors.Join(os.Rename(part, path), syncDir(filepath.Dir(path)))
	case err != nil:
		return "", err
	case !old.Mode().IsRegular():
		return "", usage("Give the file itself.", "%s is no regular file", path)
	case !yes:
		return "", usage("Add --yes: it is kept beside the new one.", "%s is there and would be replaced", path)
	}
	// Whoever has the file open would go on with it, unseen.
	if engine, _ := engineOf(path); engine == bolt {
		st, err := boltstore.Open(path, &boltstore.Options{LockTimeout: time.Second, ReadOnly: true, AllowMode: 0o777})
		if errors.Is(err, boltstore.ErrLocked) {
			return "", a.openError(path, err)
		}
		if err == nil {
			if err := st.Close(); err != nil {
				return "", err
			}
		}
	}
	kept = path + ".before-" + time.Now().UTC().Format("20060102T150405Z")
	if _, err := os.Lstat(kept); err == nil {
		return "", &failure{code: failed, what: kept + " exists", do: "Try again in a second."}
	}
	if err := os.Rename(path, kept); err != nil {
		return "", err
	}
	for _, x := range []string{"-wal", "-shm"} { // SQLite would take an old log for the new file's
		if err := os.Rename(path+x, kept+x); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	if err := os.Rename(part, path); err != nil {
		return "", errors.Join(err, os.Rename(kept, path))
	}
	return kept, syncDir(filepath.Dir(path))
}

// copyFile copies a file into a new one of mode 0600, and to the disk.
func (a *app) copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return usage("", "%s is no regular file", from)
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	bar := a.bar(info.Size(), "copy", true)
	_, err = io.Copy(io.MultiWriter(out, bar), in)
	_ = bar.Finish() // only what is shown
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}
