package main

import (
	"context"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/apitoken-go/apitoken/admin"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/move"
)

// kept are the kinds of records of a service that end by themselves or go with it, but its own record and its events.
var kept = []store.Kind{store.KindKey, store.KindRole, store.KindClient, store.KindRule, store.KindAPIKey, "grant", "ticket", "once", "note", "use", "spent", "lineage"}

func (a *app) copyCommand() *cobra.Command {
	var to, toFile, namespace string
	c := &cobra.Command{
		Use: "copy --to STORE", Short: "Move a service with all it keeps to another store", Args: exactly(0, ""),
		Long: `copy moves a service from --store to another store, which must be empty, and compares both. A file is made where there is none, and
so are tables on Postgres. Tokens, revocations, sessions, keys, events and the places of sinks stay what they are.
Afterwards the old store takes no writes, and no service starts on it. Services on Postgres or SQLite may run meanwhile;
on bbolt the service must be stopped, or call move.Copy itself. Repeat an interrupted copy, and it continues.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if (to == "") == (toFile == "") {
				return usage("Such as copy --store tokens.db --to postgres://tokens@db/tokens.", "--to or --to-file is required")
			}
			if toFile != "" {
				s, err := a.secret(toFile)
				if err != nil {
					return err
				}
				to = s.Reveal()
			} else if err := checkSpec(to); err != nil {
				return err
			}
			return a.copy(c.Context(), to, namespace)
		},
	}
	c.Flags().StringVar(&to, "to", "", "the new `store`, as --store")
	c.Flags().StringVar(&toFile, "to-file", "", "`file` that holds what --to would say, for URLs with a password")
	c.Flags().StringVar(&namespace, "to-namespace", "", "`name` of the namespace in the new store")
	return c
}

// counted counts what is written to a store.
type counted struct {
	store.Store
	bar *progressbar.ProgressBar
}

func (c counted) Apply(ctx context.Context, x *store.Change) (store.Commit, error) {
	done, err := c.Store.Apply(ctx, x)
	if err == nil {
		_ = c.bar.Add(len(x.Puts) + len(x.Events)) // only what is shown
	}
	return done, err
}

// records counts those that a copy writes.
func records(ctx context.Context, st store.Store) (n int64, err error) {
	now := time.Now().UnixMilli()
	for _, kind := range append(kept[:len(kept):len(kept)], store.KindEvent) {
		q := store.Query{Kind: kind}
		for {
			p, err := st.List(ctx, q)
			if err != nil {
				return 0, err
			}
			for _, r := range p.Records {
				if r.Expires == 0 || r.Expires > now {
					n++
				}
			}
			if q.Cursor = p.Cursor; q.Cursor == "" {
				break
			}
		}
	}
	return n, nil
}

func (a *app) copy(ctx context.Context, to, namespace string) (err error) {
	spec, err := a.storeSpec()
	if err != nil {
		return err
	}
	if spec == "" {
		return usage("Give --store.", "which store?")
	}
	if engine, path := engineOf(spec); engine == bolt && answers(path+admin.Suffix) {
		return &failure{code: unavailable, what: "a service has " + path + " open", do: "Stop it, or let it call move.Copy: docs/backup.md."}
	}
	from, err := a.open(ctx, spec, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.close()) }()
	other := *a
	other.namespace = namespace
	target, err := other.openOrMake(ctx, to, false, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.close()) }()
	total, err := records(ctx, from)
	if err != nil {
		return err
	}
	bar := a.bar(total, "copy", false)
	did, err := move.Copy(ctx, from.Store, counted{target.Store, bar})
	_ = bar.Finish() // only what is shown
	if err != nil {
		return &failure{code: unavailable, what: "the copy is not whole, and the old store still serves", err: err, do: "Repeat it with the same stores: it continues."}
	}
	if a.json {
		return a.print(map[string]any{"from": from.name, "to": target.name, "records": did.Records, "events": did.Events, "digest": hex.EncodeToString(did.Digest[:]), "refused_seconds": did.Refused.Seconds()})
	}
	n := 0
	for _, k := range did.Records {
		n += k
	}
	a.list("from", from.name, "to", target.name, "records", strconv.Itoa(n), "events", strconv.Itoa(did.Events), "digest", hex.EncodeToString(did.Digest[:]),
		"refused", did.Refused.Round(time.Millisecond).String())
	a.note("Both sides are equal. Start the service on the new store, with the same Seal; the old one takes no more writes.")
	return nil
}

func (a *app) purgeCommand() *cobra.Command {
	var events, dry, compact bool
	c := &cobra.Command{
		Use: "purge", Short: "Remove what has expired from a store that no service tidies", Args: exactly(0, ""),
		Long: `purge removes records that have expired: a running service does so every ten minutes. With --events it removes expired audit events
too, those of a service with Config.KeepEvents, whether or not its sinks have got them.`,
		RunE: func(c *cobra.Command, _ []string) error { return a.purge(c.Context(), events, dry, compact) },
	}
	c.Flags().BoolVar(&events, "events", false, "expired events too")
	c.Flags().BoolVar(&dry, "dry-run", false, "count, and remove nothing")
	c.Flags().BoolVar(&compact, "compact", false, "then give a bbolt file's free space back")
	return c
}

func (a *app) purge(ctx context.Context, events, dry, compact bool) (err error) {
	spec, err := a.storeSpec()
	if err != nil {
		return err
	}
	if spec == "" {
		return usage("Give --store.", "which store?")
	}
	engine, path := engineOf(spec)
	if engine == bolt && answers(path+admin.Suffix) {
		return &failure{code: unavailable, what: "a service has " + path + " open", do: "It removes what has expired by itself, every ten minutes."}
	}
	if compact && engine != bolt {
		return usage("Use the engine's own VACUUM.", "--compact is for bbolt")
	}
	st, err := a.open(ctx, spec, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	// Without the record of the namespace nobody knows how long tokens live, and so how long rules must.
	if _, err := factsOf(ctx, st); err != nil {
		return err
	}
	kinds := append([]store.Kind{}, kept...)
	if events {
		kinds = append(kinds, store.KindEvent)
	}
	removed := map[store.Kind]int{}
	total := 0
	bar := a.bar(-1, "purge", false)
	for _, kind := range kinds {
		n, err := purgeKind(ctx, st, kind, dry, func(n int) { _ = bar.Add(n) })
		if n > 0 {
			removed[kind] = n
		}
		if total += n; err != nil {
			return err
		}
	}
	_ = bar.Finish() // only what is shown
	if compact && !dry {
		if err := st.compact(ctx); err != nil {
			return err
		}
	}
	if a.json {
		return a.print(map[string]any{"removed": removed, "dry_run": dry})
	}
	verb := "removed"
	if dry {
		verb = "expired"
	}
	var rows [][]string
	for _, kind := range kinds {
		if removed[kind] > 0 {
			rows = append(rows, []string{string(kind), strconv.Itoa(removed[kind])})
		}
	}
	a.table([]string{"KIND", verb}, append(rows, []string{"all", strconv.Itoa(total)}))
	return nil
}

// purgeKind removes, or counts, what has expired of a kind, a few hundred at a time.
func purgeKind(ctx context.Context, st *opened, kind store.Kind, dry bool, tell func(int)) (n int, err error) {
	const step = 500
	now := time.Now().UnixMilli()
	for q := (store.Query{Kind: kind}); ; {
		if dry {
			p, err := st.List(ctx, q)
			if err != nil {
				return n, err
			}
			for _, r := range p.Records {
				if r.Expires > 0 && r.Expires < now {
					n++
				}
			}
			if q.Cursor = p.Cursor; q.Cursor == "" {
				return n, nil
			}
			continue
		}
		k, err := st.Purge(ctx, kind, now, step)
		n += k
		tell(k)
		if err != nil || k < step {
			return n, err
		}
	}
}
