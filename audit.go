// The audit log: events, and the targets (BySubject, …) that they and revocations name; who did it; which refusals are counted; which
// sinks there are. internal/auditlog stores events and feeds the sinks.

package apitoken

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/auditlog"
	"github.com/apitoken-go/apitoken/internal/deliver"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Event is one audit fact. It holds no usable secret.
type Event struct {
	ID     string     `json:"id"` // time-ordered, stable across retries
	Time   time.Time  `json:"time"`
	Type   event.Type `json:"type"`
	OK     bool       `json:"ok"`
	Reason string     `json:"reason,omitempty"` // a class, such as "expired", or what Revoke was told
	Actor  string     `json:"actor,omitempty"`  // who did it: WithActor's, or the subject or client of the Token in the context
	// ActorIssuer is the trusted issuer that Actor's name comes from; empty for names of this service and of WithActor.
	ActorIssuer string `json:"actor_issuer,omitempty"`
	Subject     string `json:"subject,omitempty"`
	// Issuer is the trusted issuer that Subject and TokenID come from; empty for this service's own. A principal is Issuer
	// and Subject together: a partner's bob is never our bob.
	Issuer  string `json:"issuer,omitempty"`
	Client  string `json:"client,omitempty"`
	TokenID string `json:"token_id,omitempty"`
	Grant   string `json:"grant,omitempty"`
	Target  Target `json:"target,omitzero"`
	Scopes  Scopes `json:"scopes,omitempty"`
	Count   int    `json:"count,omitempty"` // of refusals summed up in this event
	Origin
	// Extra says more: package event lists the members of each type.
	Extra map[string]string `json:"extra,omitempty"`
}

// Target names tokens. The zero Target, and one made of an empty ID, names none: Revoke refuses it.
type Target struct{ t rules.Target }

// ByToken names an access token by its jti, or an API key by its ID.
func ByToken(id string) Target { return Target{rules.ByToken(id)} }

// ByGrant names a session: its tokens, its refresh token, and what was exchanged from it.
func ByGrant(id string) Target { return Target{rules.ByGrant(id)} }

// BySubject names all that a subject holds: sessions, tokens and API keys. What is issued afterwards is good.
func BySubject(subject string) Target { return Target{rules.BySubject(subject)} }

// BySessions names a subject's sessions and tokens and spares its API keys: log out everywhere.
func BySessions(subject string) Target { return Target{rules.BySessions(subject)} }

// ByClient names all that a client holds, for itself or for subjects, and what was exchanged from it by others.
func ByClient(client string) Target { return Target{rules.ByClient(client)} }

// ByRole names the tokens that carry a role. It asks for them to be minted again: a refresh is good.
func ByRole(role string) Target { return Target{rules.ByRole(role)} }

// BySigningKey names all that a key signed, by its kid. [SigningKeys.Compromise] also replaces the key.
func BySigningKey(kid string) Target { return Target{rules.BySigningKey(kid)} }

// Everything names every token and API key of the service.
func Everything() Target { return Target{rules.Everything()} }

// OfIssuer makes a subject, client or token one of another trusted issuer: a principal is issuer and subject together.
func (t Target) OfIssuer(issuer string) Target { return Target{t.t.OfIssuer(issuer)} }

// OwnedBy narrows a target to what is subject's: Revoke answers ErrNotFound for a grant or token
// of someone else. For pages where users name IDs. An empty subject makes the target name none.
func (t Target) OwnedBy(subject string) Target { return Target{t.t.OwnedBy(subject)} }

// HeldBy narrows a target to what client holds: with BySubject, one application of one user. An
// empty client makes the target name none.
func (t Target) HeldBy(client string) Target { return Target{t.t.HeldBy(client)} }

// IssuedBefore moves the cut-off from now to then, to the second: what was issued until then is refused, and what descends
// from it, refreshed or exchanged since. A time in the future is taken as now.
func (t Target) IssuedBefore(then time.Time) Target { return Target{t.t.IssuedBefore(then)} }

// IsZero reports that t names nothing.
func (t Target) IsZero() bool { return t.t.IsZero() }

// String is the text form, such as "subject:alice" or "grant:01j9…;owner=alice".
func (t Target) String() string { return t.t.String() }

// MarshalText is String; the zero Target is the empty text.
func (t Target) MarshalText() ([]byte, error) { return t.t.MarshalText() }

// UnmarshalText reads what String makes. ErrInvalidRequest: anything else, so that one target has one text.
func (t *Target) UnmarshalText(b []byte) error { return public(t.t.UnmarshalText(b)) }

// Format writes the event's members that are set, with every verb.
func (e Event) Format(f fmt.State, _ rune) { io.WriteString(f, e.LogValue().String()) }

// LogValue is the event's members that are set.
func (e Event) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("id", e.ID), slog.Time("time", e.Time), slog.String("type", string(e.Type)), slog.Bool("ok", e.OK)}
	for _, x := range [...][2]string{{"reason", e.Reason}, {"actor", e.Actor}, {"actor_issuer", e.ActorIssuer}, {"subject", e.Subject}, {"issuer", e.Issuer}, {"client", e.Client},
		{"token_id", e.TokenID}, {"grant", e.Grant}, {"target", e.Target.String()}, {"scopes", e.Scopes.String()}, {"user_agent", e.UserAgent}, {"request_id", e.RequestID}} {
		if x[1] != "" {
			attrs = append(attrs, slog.String(x[0], x[1]))
		}
	}
	if e.Address.IsValid() {
		attrs = append(attrs, slog.String("address", e.Address.String()))
	}
	if e.Count != 0 {
		attrs = append(attrs, slog.Int("count", e.Count))
	}
	if len(e.Extra) > 0 {
		attrs = append(attrs, slog.Any("extra", e.Extra))
	}
	return slog.GroupValue(attrs...)
}

// EventQuery selects events; all fields that are set must match.
type EventQuery struct {
	Subject, Client, TokenID, Grant string
	Issuer                          string // the trusted issuer that Subject or TokenID comes from; empty: this service's own
	Type                            event.Type
	From, To                        time.Time // by the store's clock, From included and To not
	OldestFirst                     bool
}

// event adds e to c, as ctx tells who did it and from where.
func (c *change) event(ctx context.Context, e Event) {
	room := c.data[:0]
	if len(c.Events) > 0 {
		room = make([]byte, 0, auditlog.Room)
	}
	c.Events = append(c.Events, c.s.record(ctx, &e, room))
}

// record makes the record of e, in the memory of room while that is enough.
func (s *core) record(ctx context.Context, e *Event, room []byte) store.Record {
	o := originOf(ctx)
	if e.Actor == "" {
		who := s.actorOf(ctx)
		e.Actor, e.ActorIssuer = who.Subject, who.Issuer
	}
	x := auditlog.Event[Scope]{
		Type: e.Type, OK: e.OK, Reason: e.Reason, Actor: e.Actor, ActorIssuer: e.ActorIssuer, Subject: e.Subject, Issuer: e.Issuer,
		Client: e.Client, TokenID: e.TokenID, Grant: e.Grant, Target: e.Target.t, Scopes: e.Scopes, Count: e.Count,
		Address: o.Address, UserAgent: o.UserAgent, RequestID: o.RequestID, Extra: e.Extra,
	}
	return s.audit.Record(&x, room)
}

// readEvent reads a stored event.
func readEvent(r store.Record) (Event, error) {
	x, err := auditlog.Read[Scope](r)
	return Event{
		ID: x.ID, Time: x.Time, Type: x.Type, OK: x.OK, Reason: x.Reason, Actor: x.Actor, ActorIssuer: x.ActorIssuer, Subject: x.Subject, Issuer: x.Issuer,
		Client: x.Client, TokenID: x.TokenID, Grant: x.Grant, Target: Target{x.Target}, Scopes: x.Scopes, Count: x.Count,
		Origin: Origin{Address: x.Address, UserAgent: x.UserAgent, RequestID: x.RequestID}, Extra: x.Extra,
	}, public(err)
}

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

// alert records what nobody should ever see. It never stops what it tells of.
func (s *core) alert(ctx context.Context, what string, e Event) {
	e.Reason = what
	s.log.Error("apitoken: alert", "what", what, "grant", e.Grant)
	if err := s.alarm(ctx, e); err != nil {
		s.log.Error("apitoken: the alert could not be recorded", "what", what, "error", err)
	}
}

// eventQuery is q as stores read it.
func (s *core) eventQuery(q *EventQuery) store.Query {
	issuer := text.CleanText(s.foreign(q.Issuer))
	out := store.Query{
		Kind: store.KindEvent, Subject: auditlog.Name(issuer, q.Subject), Client: q.Client, Token: auditlog.Name(issuer, q.TokenID), Grant: q.Grant,
		Type: string(q.Type), Newest: !q.OldestFirst,
	}
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
		if err := s.audit.FlushRefusals(ctx); err != nil {
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

// hasToken reports whether a subject has an access token that no session stands behind: the events of the time that the longest of them
// lives tell of it.
func (s *core) hasToken(ctx context.Context, subject string) (bool, error) {
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

// refusal is what is known of somebody whom a call refuses.
type refusal struct{ usage.Refusal }

// of names whose token d is.
func (r *refusal) of(s *core, d *tokenData) {
	r.Issuer, r.Subject, r.Client, r.Token, r.Grant = s.foreignIssuer(d), d.Subject, d.Client, d.ID, d.Grant
}

// refused counts a refusal. d is what a verified token says, nil when nothing is verified.
func (s *core) refused(ctx context.Context, reason string, d *tokenData) {
	if reason == "unavailable" || reason == "none" {
		return // no refusal of a token
	}
	var r refusal
	r.Kind, r.Reason = string(event.Refused), reason
	if d != nil {
		r.of(s, d)
	}
	s.audit.Tally.Count(r.Refusal, "", originOf(ctx).Address)
}

// denied counts that a call was refused although a credential in it was authentic: known names whose it was, as far as the call
// came to know. A refusal without a name counts only as a bad grant. What was validated as a token is counted there.
func (s *core) denied(ctx context.Context, what string, known refusal, err error) {
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
	s.audit.Tally.Count(known.Refusal, why, originOf(ctx).Address)
}

// whyOf is what said no, without the cause, which may be a host's text. An error of another type is its text.
func whyOf(err error) string {
	var e *Error
	if !errors.As(public(err), &e) {
		return text.CleanText(err.Error())
	}
	return text.CleanText(e.Detail)
}

// Auditor receives events after they are durable.
type Auditor interface {
	// Audit takes one event, in the final order of the log. After an error, and after a crash, it gets the same
	// event again: Event.ID tells.
	Audit(ctx context.Context, e Event) error
}

// Sink is an Auditor that follows the event feed from a cursor kept in the store under Name, so that it misses
// nothing across restarts, and gets each event in the log's final order. Of several processes with the same sink, one feeds
// it at a time. Revoking and validating never wait for a sink. With MaxLag set, a sink that is further behind makes
// the calls that grant something (issue, refresh, exchange, new keys) answer ErrUnavailable.
//
// An Auditor that has a method AuditAll(context.Context, []Event) error, as those of package export have, gets up to 100 events at
// once. After an error, and after a crash, all of them come again.
type Sink struct {
	Name    string
	Auditor Auditor
	Timeout time.Duration // of one call; zero: 2 s
	MaxLag  time.Duration // zero: it may lag without limit; otherwise at least 5 s
}

// Feed delivers the event feed to x, as if it stood in Config.Sinks, until ctx or the service ends. It is for what is
// attached later: nothing waits for x, so its MaxLag is zero (ErrInvalidRequest otherwise), and events that are purged by
// their age may be missed. It returns nil at the end of ctx; ErrUnavailable: the service was closed.
func (s *Service) Feed(ctx context.Context, x Sink) error {
	if x.MaxLag != 0 || x.Auditor == nil || x.Name == "" || x.Timeout < 0 {
		return fail(ErrInvalidRequest, "the sink %q has no name or auditor, or a MaxLag", x.Name)
	}
	if s.audit.Attached(x.Name) {
		return fail(ErrInvalidRequest, "a sink %q is in Config.Sinks", x.Name)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	s.audit.Feed(ctx, s.delivery(x))
	if s.ctx.Err() != nil {
		return fail(ErrUnavailable, "the service is closed")
	}
	return nil
}

const sinkBatch = 100 // events for one call of an Auditor that takes many

// delivery is what the log needs to know of x. A sink that was never fed counts as up to date: it has MaxLag from the start on.
func (s *core) delivery(x Sink) deliver.Config {
	all, ok := x.Auditor.(interface {
		AuditAll(ctx context.Context, list []Event) error
	})
	batch := 1
	if ok {
		batch = sinkBatch
	}
	return deliver.Config{
		Name: x.Name, Timeout: x.Timeout, MaxLag: x.MaxLag, Batch: batch,
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
	}
}

func newAuditLog(s *core) *auditlog.Log[Scope] {
	l := auditlog.New[Scope](auditlog.Config{
		Writer: &s.writer, Now: s.now, Log: s.log, Issuer: s.cfg.Issuer, Keep: s.cfg.KeepEvents, Go: s.goRun,
		GrantLife: func() time.Duration { return s.space.Life().Grant + grant.Slack },
	})
	for _, x := range s.cfg.Sinks {
		l.Attach(s.delivery(x))
	}
	return l
}

// ready is ErrUnavailable while a sink with MaxLag is further behind. Calls that grant something ask; revoking and
// validating never wait for a sink.
func (s *core) ready() error { return public(s.audit.Ready()) }

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
		return s.usage(ctx, usage.Grant, t.ID)
	case rules.ByToken(t.ID):
		return s.usage(ctx, usage.APIKey, t.ID)
	}
	return Usage{}, fail(ErrInvalidRequest, "use is counted of one grant or one API key")
}

// usage is what is stored of a grant's or API key's use, and what this process has counted since.
func (s *core) usage(ctx context.Context, kind, id string) (Usage, error) {
	u, err := s.audit.Uses.Read(ctx, kind, id)
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
	return Backlog{
		Refusals: s.audit.Tally.Len(), Uses: s.audit.Uses.Waiting(), Revocations: s.revoke.Waiting(), Unreadable: len(s.state.Asides()), Sinks: s.audit.Lags(),
	}
}
