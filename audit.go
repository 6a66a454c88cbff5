// The audit log: who did what, how refusals and uses are counted, which sinks get it. internal/commit writes an event with its change.

package apitoken

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/deliver"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// actorOf is who acts in ctx. Its issuer is empty for a name of WithActor and for principals of this service.
func (s *core) actorOf(ctx context.Context) rules.Principal {
	t := FromContext(ctx)
	if t.IsZero() {
		actor, _ := ctx.Value(actorKey{}).(rules.Principal)
		actor.Subject = text.CleanText(actor.Subject)
		return actor
	}

	actor := rules.Principal{Issuer: s.foreignIssuer(t.d), Subject: t.d.Subject}
	if len(t.d.Actors) == 0 {
		return actor
	}
	actor.Subject = t.d.Actors[0]
	// An actor may come from a third issuer. That another issuer says that one of ours acts proves nothing: it stays a name
	// that this issuer gave.
	if from := t.d.from; from != nil && len(from.Actors) > 0 {
		if named := from.Actors[0].Issuer; named != "" && named != s.cfg.Issuer {
			actor.Issuer = named
		}
	}
	return actor
}

// foreignIssuer is the issuer of a token that another issuer signed, empty for our own tokens and for those of users that are ours
// (see profile.SameUsers).
func (s *core) foreignIssuer(d *tokenData) string {
	if d.from != nil && d.from.Abroad != nil {
		return s.foreign(d.from.Abroad.Issuer)
	}
	return s.foreign(d.Issuer)
}

// foreign is issuer unless it is this service.
func (s *core) foreign(issuer string) string {
	if issuer == s.cfg.Issuer {
		return ""
	}
	return issuer
}

// auditLog writes events, sums up what may be summed up, and feeds the sinks.
type auditLog struct {
	s     *core
	tally usage.Tally
	uses  *usage.Log
	sinks []*deliver.Feed
	fed   sync.Map // *deliver.Feed: those of Feed, while it runs
	kick  chan struct{}
	known func(client string) bool // whether one is registered
}

const flushEvery = 30 * time.Second // of refusals and uses

// record completes e and makes its record, in the memory of data while that is enough.
func (a *auditLog) record(ctx context.Context, e Event, data []byte) store.Record {
	now := a.s.now()
	e.ID, e.Time = newID(now), now
	e.Origin = originOf(ctx)
	if e.Subject == "" { // whom a target names, the event is about: lists by subject find it, and erasure does
		e.Subject = e.Target.t.EventSubject()
	}
	if t := e.Target.t; e.Issuer == "" && (e.Subject != "" && e.Subject == t.EventSubject() || e.TokenID != "" && e.TokenID == t.EventID(rules.TargetToken)) {
		e.Issuer = t.Issuer
	}
	if e.Actor == "" {
		who := a.s.actorOf(ctx)
		e.Actor, e.ActorIssuer = who.Subject, who.Issuer
	}
	e.Issuer, e.ActorIssuer = text.CleanText(a.s.foreign(e.Issuer)), text.CleanText(a.s.foreign(e.ActorIssuer))
	// Names may come from another issuer's token or a request. One that a store refuses, for a NUL say, would keep this event,
	// and whatever is written with it, out of the log for good.
	for _, name := range [...]*string{&e.Subject, &e.Client, &e.Grant, &e.TokenID} {
		*name = text.CleanText(*name)
	}
	r := store.Record{Kind: store.KindEvent, ID: e.ID, Type: string(e.Type), Subject: eventName(e.Issuer, e.Subject), Client: e.Client, Grant: e.Grant, Token: eventName(e.Issuer, e.TokenID)}
	if keep := a.s.cfg.KeepEvents; keep > 0 {
		r.Expires = now.Add(keep).UnixMilli()
	}
	r.Data = e.append(data)
	if len(r.Data) > maxEventBytes {
		kept := map[string]string{"cut": "this event was too large"}
		if chain := e.Extra["chain"]; chain != "" { // short, and what a report follows
			kept["chain"] = chain
		}
		e.Extra, e.Scopes = kept, nil
		e.Reason, e.Target = text.CleanText(e.Reason), Target{}
		r.Data = e.append(r.Data[:0])
	}
	return r
}

const maxEventBytes = 15 << 10

// hasToken reports whether a subject has an access token that no session stands behind: the events of the time that the longest of them
// lives tell of it.
func (a *auditLog) hasToken(ctx context.Context, subject string) (bool, error) {
	s := a.s
	live := s.space.Life().Access + time.Minute // for clocks that differ
	q := store.Query{Kind: store.KindEvent, Subject: subject, Since: max(s.now().Add(-live).UnixMilli(), 0), Newest: true}
	for r, err := range s.pages(ctx, q, Page{}) {
		if err != nil {
			return false, err
		}
		e, err := readEvent(r)
		if err != nil {
			return false, err
		}
		if e.Type != event.Issued && e.Type != event.Exchanged || !e.OK || e.Issuer != "" || e.Subject != subject {
			continue
		}

		if _, err := s.get(ctx, grant.Kind, e.Grant); err == nil {
			continue // a token with a session is judged with its session
		} else if !isNotFound(err) {
			return false, err
		}
		at := store.Position{N: r.Written << 16} // about where it was issued
		x := &rules.Subject{Subject: subject, Client: e.Client, ID: e.TokenID, Grant: e.Grant, Iat: e.Time, Pos: rules.Positions{Birth: at, View: at}}
		if s.rules.Hit(x) == "" {
			return true, nil
		}
	}
	return false, nil
}

// refused counts a refusal. d is what a verified token says, nil when nothing is verified.
func (a *auditLog) refused(ctx context.Context, t event.Type, reason string, d *tokenData) {
	if reason == "unavailable" || reason == "none" {
		return // no refusal of a token
	}
	var r refusal
	r.Kind, r.Reason = string(t), reason
	if d != nil {
		r.of(a.s, d)
	}
	a.tally.Count(r.Refusal, "", originOf(ctx).Address)
}

// denied counts that a call was refused although a credential in it was authentic: known names whose it was, as far as the call
// came to know. A refusal without a name counts only as a bad grant. What was validated as a token is counted there.
func (a *auditLog) denied(ctx context.Context, what string, known refusal, err error) {
	switch {
	case err == nil, errors.Is(err, ErrUnavailable):
		return
	case errors.Is(err, ErrInvalidGrant):
	case !known.Named(), errors.Is(err, ErrInvalidToken), errors.Is(err, ErrNoToken):
		return
	}
	known.Kind, known.Reason = string(event.Refused), what
	why := ""
	if known.Named() {
		why = whyOf(err)
	}
	a.tally.Count(known.Refusal, why, originOf(ctx).Address)
}

// whyOf is what said no, without the cause, which may be a host's text. An error of another type is its text.
func whyOf(err error) string {
	var e *Error
	if !errors.As(public(err), &e) {
		return text.CleanText(err.Error())
	}
	return text.CleanText(e.Detail)
}

// clientRefused counts a failed authentication of a client. claimed is the ID that was given.
func (a *auditLog) clientRefused(ctx context.Context, reason, claimed string) {
	r := usage.Refusal{Kind: string(event.ClientRefused), Reason: reason}
	if a.known(claimed) {
		r.Claimed = claimed // any other name is whatever a stranger likes to write into the log
	}
	a.tally.Count(r, "", originOf(ctx).Address)
}

// run flushes the counters and feeds the sinks.
func (a *auditLog) run(ctx context.Context) {
	for _, f := range a.sinks {
		a.s.goRun("sink", f.Run)
	}
	for {
		t := time.NewTimer(follow.Jitter(flushEvery))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-a.kick:
		case <-t.C:
		}
		t.Stop()
		fctx, cancel := context.WithTimeout(ctx, flushEvery)
		a.flush(fctx)
		cancel()
	}
}

// flush writes what was counted. What cannot be written is counted on.
func (a *auditLog) flush(ctx context.Context) {
	if err := a.tally.Flush(ctx, a.writeRefusals); err != nil && ctx.Err() == nil {
		a.s.log.Warn("apitoken: refusals could not be recorded yet", "error", err)
	}
	if err := a.uses.Flush(ctx); err != nil && ctx.Err() == nil {
		a.s.log.Warn("apitoken: uses could not be recorded yet", "error", err)
	}
}

// writeRefusals writes the counted refusals as events.
func (a *auditLog) writeRefusals(ctx context.Context, list []*usage.Refused) error {
	c := a.s.newChange()
	for _, x := range list {
		c.event(context.Background(), refusedEvent(x))
	}
	_, err := a.s.commit(ctx, c)
	return err
}

// eventQuery is q as stores read it.
func (s *core) eventQuery(q *EventQuery) store.Query {
	issuer := text.CleanText(s.foreign(q.Issuer))
	out := store.Query{Kind: store.KindEvent, Subject: eventName(issuer, q.Subject), Client: q.Client, Token: eventName(issuer, q.TokenID), Grant: q.Grant, Type: string(q.Type), Newest: !q.OldestFirst}
	if !q.From.IsZero() {
		out.Since = q.From.UnixMilli()
	}
	if !q.To.IsZero() {
		out.Until = q.To.UnixMilli()
	}
	return out
}

// Events lists audit events, the newest first unless q says otherwise. What is only counted so far is written first.
func (s *Service) Events(ctx context.Context, q EventQuery) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		cursor := ""
		for {
			list, next, err := s.EventPage(ctx, q, cursor, 200)
			if err != nil {
				yield(Event{}, err)
				return
			}
			for _, e := range list {
				if !yield(e, nil) {
					return
				}
			}
			if cursor = next; cursor == "" {
				return
			}
		}
	}
}

// EventPage lists a page of at most limit events (zero: 200, at most 1000) behind a cursor that an earlier page of the same query
// gave; empty: from the start. An empty next says that there is nothing more now.
func (s *Service) EventPage(ctx context.Context, q EventQuery, cursor string, limit int) (list []Event, next string, err error) {
	if limit <= 0 {
		limit = 200
	}
	if cursor == "" && s.ctx.Err() == nil {
		if err := s.audit.tally.Flush(ctx, s.audit.writeRefusals); err != nil {
			s.log.Warn("apitoken: refusals could not be recorded yet", "error", err)
		}
	}
	if q.Issuer != "" && q.Subject == "" && q.TokenID == "" {
		return nil, "", fail(ErrInvalidRequest, "EventQuery.Issuer needs Subject or TokenID: it says whose they are")
	}
	sq := s.eventQuery(&q)
	copied := s.space.Copied[1] != 0 && (sq.Since != 0 && sq.Since <= s.space.Copied[1] || sq.Until != 0 && sq.Until <= s.space.Copied[1])
	if copied { // events from before carry the store's time of the copy: look at them all, and at their own time
		if sq.Since != 0 {
			sq.Since = min(sq.Since, s.space.Copied[0])
		}
		if sq.Until != 0 {
			sq.Until = max(sq.Until, s.space.Copied[1]+1)
		}
	}
	sq.Cursor, sq.Limit = cursor, min(limit, 1000)
	page, err := s.st.List(ctx, sq)
	switch {
	case errors.Is(err, store.ErrTrimmed):
		return nil, "", &Error{Code: ErrInvalidRequest, Detail: "the cursor is older than what is kept", Cause: err}
	case err != nil:
		return nil, "", unavailable(err, "list events")
	}
	list = make([]Event, 0, len(page.Records))
	for _, r := range page.Records {
		e, err := readEvent(r)
		if err != nil {
			return nil, "", err
		}
		if copied && (!q.From.IsZero() && e.Time.Before(q.From) || !q.To.IsZero() && !e.Time.Before(q.To)) {
			continue
		}
		if q.Subject != "" && e.Subject != q.Subject || q.TokenID != "" && e.TokenID != q.TokenID {
			continue // a name of ours that spells another issuer's in the index, or the other way round
		}
		list = append(list, e)
	}
	return list, page.Cursor, nil
}

// Alert adds an alert to the audit log: e's Reason says of what, its ID, Time, Type and Origin (ctx's) are set here.
// ErrUnavailable: it may not be in the log.
func (s *Service) Alert(ctx context.Context, e Event) error { return s.alarm(ctx, e) }

func (s *core) alarm(ctx context.Context, e Event) error {
	e.Type = event.Alert
	c := s.newChange()
	c.event(ctx, e)
	_, err := s.commit(ctx, c)
	return err
}

// Event returns the audit event with an ID, as [Event.ID] says it: for links from an alert, a log line or a SIEM. An ID tells
// when its event was written, so that few others are read. ErrNotFound: there is none, or it was removed by Config.KeepEvents,
// or the clock of whoever wrote it was over a minute away from the store's.
func (s *Service) Event(ctx context.Context, id string) (_ Event, failed error) {
	defer tell(&failed)
	raw, err := opaque.ParseID(id)
	if err != nil {
		return Event{}, fail(ErrNotFound, "no event has such an ID")
	}

	// Nearly always the event is within a second of its ID's time; a busy log holds many others in a minute.
	at := raw.Time()
	for _, around := range [...]time.Duration{time.Second, time.Minute} {
		for e, err := range s.Events(ctx, EventQuery{From: at.Add(-around), To: at.Add(around)}) {
			if err != nil || e.ID == id {
				return e, err
			}
		}
	}
	return Event{}, fail(ErrNotFound, "no event %q", id)
}

// Refusals and uses happen at every request, and refusals at the will of whoever sends them. They are counted in memory
// of a fixed size and written in batches: a crash loses at most half a minute of counts, and nobody can fill the disk.

// refusal is what is known of somebody whom a call refuses.
type refusal struct{ usage.Refusal }

// of names whose token d is.
func (r *refusal) of(s *core, d *tokenData) {
	r.Issuer, r.Subject, r.Client, r.Token, r.Grant = s.foreignIssuer(d), d.Subject, d.Client, d.ID, d.Grant
}

// refusedEvent sums up what c counted.
func refusedEvent(c *usage.Refused) Event {
	e := Event{Type: event.Type(c.Kind), Reason: c.Reason, Subject: c.Subject, Issuer: c.Issuer, Client: c.Client, TokenID: c.Token, Grant: c.Grant, Count: c.N}
	var list []string
	for _, a := range c.Addresses {
		list = append(list, a.String())
	}
	for name, v := range map[string]string{"addresses": strings.Join(list, " "), "claimed": c.Claimed, "why": strings.Join(c.Whys, "; ")} {
		if v == "" {
			continue
		}
		if e.Extra == nil {
			e.Extra = map[string]string{}
		}
		e.Extra[name] = v
	}
	return e
}

func (c *change) event(ctx context.Context, e Event) {
	room := c.data[:0]
	if len(c.Events) > 0 {
		room = make([]byte, 0, eventRoom)
	}
	c.Events = append(c.Events, c.s.audit.record(ctx, e, room))
}

// alert records what nobody should ever see. It never stops what it tells of.
func (s *core) alert(ctx context.Context, what string, e Event) {
	e.Reason = what
	s.log.Error("apitoken: alert", "what", what, "grant", e.Grant)
	if err := s.alarm(ctx, e); err != nil {
		s.log.Error("apitoken: the alert could not be recorded", "what", what, "error", err)
	}
}

// Feed delivers the event feed to x, as if it stood in Config.Sinks, until ctx or the service ends. It is for what is
// attached later: nothing waits for x, so its MaxLag is zero (ErrInvalidRequest otherwise), and events that are purged by
// their age may be missed. It returns nil at the end of ctx; ErrUnavailable: the service was closed.
func (s *Service) Feed(ctx context.Context, x Sink) error {
	if x.MaxLag != 0 || x.Auditor == nil || x.Name == "" || x.Timeout < 0 {
		return fail(ErrInvalidRequest, "the sink %q has no name or auditor, or a MaxLag", x.Name)
	}
	for _, f := range s.audit.sinks {
		if f.Name() == x.Name {
			return fail(ErrInvalidRequest, "a sink %q is in Config.Sinks", x.Name)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	f := s.newFeed(x)
	s.audit.fed.Store(f, nil)
	defer s.audit.fed.Delete(f)
	f.Run(ctx)
	if s.ctx.Err() != nil {
		return fail(ErrUnavailable, "the service is closed")
	}
	return nil
}

const sinkBatch = 100 // events for one call of an Auditor that takes many

// newFeed makes what feeds x. A sink that was never fed counts as up to date: it has MaxLag from the start on.
func (s *core) newFeed(x Sink) *deliver.Feed {
	all, ok := x.Auditor.(interface {
		AuditAll(ctx context.Context, list []Event) error
	})
	batch := 1
	if ok {
		batch = sinkBatch
	}
	return deliver.New(deliver.Config{
		Name: x.Name, Timeout: x.Timeout, MaxLag: x.MaxLag, Keep: s.cfg.KeepEvents,
		Store: s.st, Now: s.now, Log: s.log,
		Write: func(ctx context.Context, w record.Written, expect store.Version) (store.Version, error) {
			c := s.newChange()
			c.Put(w, expect)
			_, err := s.commit(ctx, c)
			return c.ID, err
		},
		Batch: batch,
		Deliver: func(ctx context.Context, records []store.Record) error {
			list := make([]Event, len(records))
			for i, r := range records {
				var err error
				if list[i], err = readEvent(r); err != nil {
					return err
				}
			}
			if all != nil {
				return all.AuditAll(ctx, list)
			}
			return x.Auditor.Audit(ctx, list[0])
		},
		Missed: func(ctx context.Context) {
			s.alert(ctx, "audit sink missed events that were purged", Event{Extra: map[string]string{"sink": x.Name}})
		},
	})
}

// ready is ErrUnavailable while a sink with MaxLag is further behind. Calls that grant something ask; revoking and
// validating never wait for a sink.
func (a *auditLog) ready() error {
	for _, f := range a.sinks {
		if err := f.Late(); err != nil {
			return public(err)
		}
	}
	return nil
}

// delivered is a purge time, at most before, that spares the events which some sink has not got yet.
func (a *auditLog) delivered(before time.Time) time.Time {
	for _, f := range a.sinks {
		if t := f.Kept().Add(a.s.cfg.KeepEvents); t.Before(before) {
			before = t
		}
	}
	return before
}

func newAuditLog(s *core) *auditLog {
	a := &auditLog{s: s, kick: make(chan struct{}, 1)}
	a.tally.Log = s.log
	a.uses = newUses(s)
	for _, x := range s.cfg.Sinks {
		a.sinks = append(a.sinks, s.newFeed(x))
	}
	return a
}

// useSlack is how long the uses of an API key are kept after the last one.
const useSlack = 400 * 24 * time.Hour

func newUses(s *core) *usage.Log {
	return usage.New(usage.Config{
		Now: s.now, Log: s.log, Get: s.get,
		Life: func(kind string) time.Duration {
			if kind == usage.Grant {
				return s.space.Life().Grant + grantSlack
			}
			return useSlack
		},
		Write: func(ctx context.Context, puts ...usage.Put) (store.Version, error) {
			c := s.newChange()
			for _, p := range puts {
				c.Put(p.Written, p.Expect)
			}
			_, err := s.commit(ctx, c)
			return c.ID, err
		},
	})
}

// Usage is how a grant or an API key was used: in processes with a store, where every validation counts, up to half a
// minute ago in the others. A process that ends by a crash loses as much.
type Usage struct {
	Count     uint64
	Last      time.Time // to within a second; zero: never
	Addresses []string  // by Origin, the latest first, at most 8
	// Scopes are those that [Authorize] asked of it and that it held: as they were asked for, which may be narrower than what
	// it holds. At most 32 are kept; 32 may not be all. A program that looks at Token.Scopes by itself leaves no trace here.
	Scopes Scopes
}

// Usage tells how the grant of ByGrant, or the API key of ByToken, was used: the zero Usage if it was not, and for IDs that
// nothing has. ErrInvalidRequest: another target, or a narrowed one.
func (s *Service) Usage(ctx context.Context, target Target) (Usage, error) {
	t := target.t
	switch t {
	case rules.ByGrant(t.ID):
		return s.audit.usage(ctx, usage.Grant, t.ID)
	case rules.ByToken(t.ID):
		return s.audit.usage(ctx, usage.APIKey, t.ID)
	}
	return Usage{}, fail(ErrInvalidRequest, "use is counted of one grant or one API key")
}

// usage is what is stored of a grant's or API key's use, and what this process has counted since.
func (a *auditLog) usage(ctx context.Context, kind, id string) (Usage, error) {
	u, err := a.uses.Read(ctx, kind, id)
	if err != nil {
		return Usage{}, public(err)
	}
	out := Usage{Count: u.Count, Addresses: u.From, Scopes: scopesOf(u.Scopes)}
	if u.Last > 0 {
		out.Last = time.UnixMilli(u.Last)
	}
	return out, nil
}

// Backlog is what one process has counted, decided or is to deliver, and has not got rid of yet: for metrics and health checks.
type Backlog struct {
	Refusals    int // distinct ones that were counted and are not in the log yet, at most 128
	Uses        int // tokens and API keys whose uses were counted and are not stored yet
	Revocations int // in force here and not in the store yet: other processes do not know them
	// Unreadable is the number of followed records that this process could not read and has set aside. What depends on one is
	// refused. [Service.Unreadable] lists them.
	Unreadable int
	// Sinks is how far each of Config.Sinks, and of those that Feed feeds, is behind at most, by name. In a process that
	// does not feed it itself it is what the store says, up to 15 s too much.
	Sinks map[string]time.Duration
}

// Backlog is the service's own now. It asks no store.
func (s *Service) Backlog() Backlog {
	a := s.audit
	var b Backlog
	b.Refusals = a.tally.Len()
	b.Uses = a.uses.Waiting()
	b.Revocations = s.retries.Len()
	b.Unreadable = len(s.state.Asides())
	b.Sinks = make(map[string]time.Duration, len(a.sinks))
	for _, f := range a.sinks {
		b.Sinks[f.Name()] = f.Lag()
	}
	a.fed.Range(func(key, _ any) bool {
		f := key.(*deliver.Feed)
		b.Sinks[f.Name()] = f.Lag()
		return true
	})
	return b
}
