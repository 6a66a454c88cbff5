package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/admin"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

// finding is one thing that doctor looked at.
type finding struct {
	Check  string `json:"check"`
	Level  string `json:"level"` // ok, warn or bad
	Detail string `json:"detail"`
	Do     string `json:"do,omitempty"`
}

type diagnosis struct {
	Findings []finding `json:"findings"`
}

func (d *diagnosis) say(level, check, do, format string, args ...any) {
	d.Findings = append(d.Findings, finding{check, level, fmt.Sprintf(format, args...), do})
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Look whether a store and its service are well", Args: exactly(0, ""),
		Long: `doctor looks at a store: who has it open, its format and damage, the disk, the clock, whether it was restored, how its signing
keys are sealed, which keys expire within 30 days, and records that cannot be read. Of a running service it asks for its
view, its backlog and its sinks; of a store on a server it reads the server's settings. Each finding says what to do. It changes nothing.

Exit code 3: something is bad. Warnings alone are 0.`,
		RunE: func(c *cobra.Command, _ []string) error { return a.doctor(c.Context()) },
	}
}

func (a *app) doctor(ctx context.Context) error {
	d := &diagnosis{Findings: []finding{}}
	if err := a.diagnose(ctx, d); err != nil {
		return err
	}
	bad := false
	for _, f := range d.Findings {
		bad = bad || f.Level == "bad"
	}
	if a.json {
		if err := a.print(d); err != nil {
			return err
		}
	} else {
		for _, f := range d.Findings {
			fmt.Fprintf(a.out, "%s  %-13s %s\n", a.paint(f.Level), f.Check, clean(f.Detail))
			if f.Do != "" {
				fmt.Fprintf(a.out, "      %13s → %s\n", "", f.Do)
			}
		}
	}
	if bad {
		return errFound
	}
	return nil
}

// paint is a level, four wide, with a color on a terminal.
func (a *app) paint(level string) string {
	text := fmt.Sprintf("%-4s", level)
	if !a.colored() {
		return text
	}
	color := map[string]string{"ok": "32", "warn": "33", "bad": "31"}[level]
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func (a *app) diagnose(ctx context.Context, d *diagnosis) error {
	if at := setting(a.admin, "APITOKEN_ADMIN"); at != "" {
		s, err := a.dial(at)
		if err != nil {
			return err
		}
		return a.diagnoseService(ctx, d, s)
	}
	spec, err := a.storeSpec()
	if err != nil {
		return err
	}
	if spec == "" {
		return usage("Give --store FILE, or --admin SOCKET-OR-URL.", "which store?")
	}
	engine, path := engineOf(spec)
	if engine.isFile() {
		a.diagnoseFile(d, path)
		if answers(path + admin.Suffix) {
			d.say("ok", "lock", "", "a service has it open and answers on %s", path+admin.Suffix)
			s, err := a.dial(path + admin.Suffix)
			if err != nil {
				return err
			}
			return a.diagnoseService(ctx, d, s)
		}
	}
	if engine == redisDB { // before it is opened: settings that are not safe keep it shut
		client, _, err := redisClient(spec)
		if err != nil {
			return err
		}
		one, cancel := context.WithTimeout(ctx, a.timeout)
		diagnoseRedis(one, d, client)
		cancel()
		if err := client.Close(); err != nil {
			return err
		}
	}
	return a.diagnoseStore(ctx, d, spec, path)
}

// diagnoseFile looks at the file from outside.
func (a *app) diagnoseFile(d *diagnosis, path string) {
	info, err := os.Stat(path)
	if err != nil {
		return // opening it says so
	}
	if extra := info.Mode().Perm() &^ 0o600; extra != 0 && a.mode == "" {
		d.say("bad", "mode", "chmod 600 "+path, "%s has mode %04o: others may read or write it", path, info.Mode().Perm())
	}
	free, ok := freeSpace(filepath.Dir(path))
	switch need := uint64(info.Size()) + 64<<20; {
	case !ok:
	case free < need/4:
		d.say("bad", "disk", "Make room: only revocations are written when it is full.", "%s free, and the file takes %s", size(free), size(uint64(info.Size())))
	case free < need:
		d.say("warn", "disk", "Make room: a backup or a compaction needs as much as the file.", "%s free, and the file takes %s", size(free), size(uint64(info.Size())))
	default:
		d.say("ok", "disk", "", "%s free, and the file takes %s", size(free), size(uint64(info.Size())))
	}
}

func size(n uint64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", (n+1023)>>10)
	}
	if n < 1<<30 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// diagnoseStore opens the store, reads what it says, and starts a service on it where that can be.
func (a *app) diagnoseStore(ctx context.Context, d *diagnosis, spec, path string) error {
	st, err := a.open(ctx, spec, true)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return err
		}
		var f *failure
		engine, _ := engineOf(spec)
		if !errors.As(err, &f) || f.code == misused || engine.isFile() && f.code == notFound && f.err == nil {
			return err
		}
		check := "open"
		switch {
		case errors.Is(err, boltstore.ErrLocked):
			check = "lock"
		case errors.Is(err, boltstore.ErrClockBehind):
			check = "clock"
		case errors.Is(err, boltstore.ErrVersion):
			check = "format"
		case f.code == failed && engine.isFile():
			check = "damage"
		case f.code == notFound:
			d.say("warn", check, f.do, "%s", err.Error())
			return nil
		}
		d.say("bad", check, f.do, "%s", err.Error())
		return nil
	}
	if st.engine.isFile() {
		d.say("ok", "lock", "", "nobody has it open")
	}
	d.say("ok", "format", "", "%s, and it opens", st.engine)
	if st.server != nil {
		st.server(ctx, d)
	}
	facts, err := factsOf(ctx, st)
	if err != nil {
		return errors.Join(err, st.close())
	}
	diagnoseFacts(d, st, facts)
	a.diagnoseContent(ctx, d, st)
	if err := st.close(); err != nil {
		return err
	}
	if facts.moved || st.restored || facts.restored() {
		d.say("warn", "records", "", "not looked at: no service starts on it now")
		return nil
	}
	s, err := a.connect(ctx, nil)
	if err != nil {
		_, text, do := a.explain(err)
		d.say("warn", "records", do, "not looked at: %s", text)
		return nil
	}
	defer s.close()
	return a.diagnoseRecords(ctx, d, s)
}

// diagnoseContent reads every record and event, by which an engine finds what is damaged.
func (a *app) diagnoseContent(ctx context.Context, d *diagnosis, st *opened) {
	bar := a.bar(-1, "read", false)
	defer bar.Finish()
	n := 0
	for _, kind := range append(kept[:len(kept):len(kept)], store.KindMeta, store.KindEvent, "cursor", "quota", "copy") {
		for q := (store.Query{Kind: kind}); ; {
			one, cancel := context.WithTimeout(ctx, a.timeout)
			p, err := st.List(one, q)
			cancel()
			if err != nil {
				d.say("bad", "damage", "Put the latest backup back, if it says that something is damaged: apitoken restore.", "records of kind %s cannot be read: %v", kind, err)
				return
			}
			n += len(p.Records)
			_ = bar.Add(len(p.Records)) // only what is shown
			if q.Cursor = p.Cursor; q.Cursor == "" {
				break
			}
		}
	}
	d.say("ok", "damage", "", "all %d records and events were read", n)
}

// diagnoseFacts judges what the store says of its service.
func diagnoseFacts(d *diagnosis, st *opened, f *facts) {
	d.say("ok", "issuer", "", "%s", f.Issuer)
	switch {
	case f.moved:
		d.say("bad", "moved", "Start the service on the store that it was copied to, and remove this one.", "the service was copied to another store")
	case st.restored || f.restored():
		d.say("bad", "restored", "Choose by Config.Restored, or apitoken restore --accept: docs/backup.md says what each choice means.", "the store was put back or copied: revocations may be missing, and no service starts on it")
	default:
		d.say("ok", "restored", "", "it is the store that the service last wrote")
	}
	switch {
	case f.plain:
		d.say("bad", "sealing", "Give the service a Config.Seal: docs/keys.md.", "the signing keys lie unencrypted: whoever reads the store can sign tokens")
	case f.exposed:
		d.say("warn", "sealing", "apitoken signing-keys rotate-secrets, since copies of the store may hold them.", "the signing keys are sealed, and lay unencrypted before")
	default:
		d.say("ok", "sealing", "", "the signing keys are sealed")
	}
	if f.keys == 0 {
		d.say("bad", "signing keys", "Start the service: it makes one.", "no signing key is good")
	}
}

// soon is how far ahead doctor looks for what ends.
const soon = 30 * 24 * time.Hour

// asked makes one call of a service within the time of one answer. One that takes longer is told as a warning: large stores are not
// read whole in that time.
func asked[T any](ctx context.Context, a *app, d *diagnosis, check string, call func(context.Context) (T, error)) (out T, ok bool, err error) {
	one, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	if out, err = call(one); err == nil {
		return out, true, nil
	}
	if ctx.Err() == nil && (errors.Is(err, apitoken.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)) {
		_, text, _ := a.explain(err)
		d.say("warn", check, "", "not known: %s", text)
		return out, false, nil
	}
	return out, false, err
}

// diagnoseRecords asks a service about its records.
func (a *app) diagnoseRecords(ctx context.Context, d *diagnosis, s *service) error {
	unreadable, ok, err := asked(ctx, a, d, "records", func(ctx context.Context) (admin.Page[admin.Unreadable], error) { return s.Unreadable(ctx, true) })
	if err != nil {
		return err
	}
	for _, r := range unreadable.Items {
		d.say("bad", "records", "Repair it (Service.Repair), or end it (Service.Remove): until then what depends on it is refused.", "%s %s cannot be read: %s", r.Kind, r.ID, r.Error)
	}
	if ok && len(unreadable.Items) == 0 {
		d.say("ok", "records", "", "every record can be read")
	}
	keys, _, err := asked(ctx, a, d, "signing keys", s.SigningKeys)
	if err != nil {
		return err
	}
	for _, k := range keys.Items {
		if k.State == "active" {
			d.say("ok", "signing keys", "", "%s signs by %s since %s", k.ID, k.Algorithm, at(k.Since))
		}
	}
	ends, ok, err := asked(ctx, a, d, "expiry", func(ctx context.Context) (admin.Page[admin.Expiry], error) {
		status, err := s.Status(ctx)
		if err != nil {
			return admin.Page[admin.Expiry]{}, err
		}
		return s.Expiring(ctx, status.Now.Add(soon), 5)
	})
	if err != nil {
		return err
	}
	for _, x := range ends.Items {
		do := "Tell its owner: apitoken keys rotate " + x.ID + "."
		if x.Kind != "apikey" {
			do = "apitoken clients rotate-secret " + x.ID + ", if the client has no newer secret."
		}
		d.say("warn", "expiry", do, "%s %s of %s ends %s", map[string]string{"apikey": "API key", "secret": "a secret,"}[x.Kind], x.ID, x.Owner, at(x.Ends))
	}
	if ok && len(ends.Items) == 0 {
		d.say("ok", "expiry", "", "no API key or client secret ends within 30 days")
	}
	return nil
}

// diagnoseService asks a service that runs.
func (a *app) diagnoseService(ctx context.Context, d *diagnosis, s *service) error {
	one, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	before := time.Now()
	st, err := s.Status(one)
	if err != nil {
		return err
	}
	d.say("ok", "issuer", "", "%s", st.Issuer)
	seconds := func(n float64) time.Duration { return time.Duration(n * float64(time.Second)).Round(time.Millisecond) }
	if off := st.Now.Sub(before).Round(time.Second); off.Abs() > 10*time.Second {
		d.say("bad", "clock", "Set the clocks by NTP.", "the service's clock differs from this machine's by %s", off)
	} else {
		d.say("ok", "clock", "", "the service's clock agrees with this machine's")
	}
	if st.Stale {
		d.say("bad", "view", "Look why it cannot read its store: its log says so.", "the service's view is %s old, over its %s: it refuses", seconds(st.ViewAge), seconds(st.MaxStaleness))
	} else {
		d.say("ok", "view", "", "%s old, and may be %s", seconds(st.ViewAge), seconds(st.MaxStaleness))
	}
	if st.Revocations > 0 {
		d.say("bad", "backlog", "Look why it cannot write its store: its log says so.", "%d revocations are in force in this process and not in the store", st.Revocations)
	}
	for name, behind := range st.Sinks {
		most := st.SinkLimits[name]
		switch {
		case most > 0 && behind > most:
			d.say("bad", "sink", "Look at what it feeds: issuing is stopped meanwhile.", "%s is %s behind, over its %s", name, seconds(behind), seconds(most))
		case behind > 300:
			d.say("warn", "sink", "Look at what it feeds.", "%s is %s behind", name, seconds(behind))
		default:
			d.say("ok", "sink", "", "%s is %s behind", name, seconds(behind))
		}
	}
	return a.diagnoseRecords(ctx, d, s)
}
