// Package revoke writes revocations: it takes a rule from the call that asks for it into the store, and puts it back into a store
// that lost it. What a rule matches is in internal/rules.
//
// It owns how the record of a rule is made, for how long it is kept, and what is said of it afterwards. It promises of
// Write, End, EndBy and Ahead that a rule is in force in this process before the store is asked, and stays so until the store has it: a
// write whose outcome is unknown is tried again, by Run. Add only adds the rule to a change; whoever writes that calls Ahead, or needs no
// such promise. A rule is kept until everything that it matches has ended.
//
// Order: the rule is held first, then what its lifetime depends on is read (internal/lineage), then it is written. The queue's
// mutex is a leaf, and no lock is held while the store is asked. The root calls Write, End and Add; internal/clients and
// internal/ticket call Add and EndBy for what has leaked, and internal/keyring for a signing key; the janitor calls Finish and
// PutBack.
package revoke

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/namespace"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/store"
)

const (
	maxReason = 256                    // bytes
	ownerWait = 250 * time.Millisecond // for the name of whose a grant or API key is
)

// Config is what a Writer stands on.
type Config struct {
	Commit  *commit.Writer
	Rules   *rules.Book
	Lineage *lineage.Notes
	Space   *namespace.Space
	Now     func() time.Time
	Log     *slog.Logger
}

// Host is the service around a Writer.
type Host interface {
	Actor(ctx context.Context) rules.Principal // who acts
	// Carry returns what gives another context all that events say of ctx, which is asked now: when its call has returned, it may be
	// another request's.
	Carry(ctx context.Context) func(context.Context) context.Context
	Event(ctx context.Context, c *commit.Change, e Event) // adds an event to c
	Observe(ctx context.Context, err error, took time.Duration)
}

// Event tells of what was revoked.
type Event struct {
	Type                          event.Type
	Reason                        string
	Target                        rules.Target
	Subject, Client, Grant, Token string
	Scopes                        []string
	Count                         int
	Extra                         map[string]string
}

// Writer writes revocations. Use New.
type Writer struct {
	Config
	host  Host
	queue *queue
}

// New makes a Writer.
func New(c Config, h Host) *Writer { return &Writer{c, h, newQueue(c.Log)} }

// Run tries again what is not in the store yet, until ctx ends. It is called once.
func (w *Writer) Run(ctx context.Context) { w.queue.run(ctx) }

// Waiting is how many revocations are in force here and not in the store yet.
func (w *Writer) Waiting() int { return w.queue.waiting() }

// Rule is what is to be revoked.
type Rule struct {
	Target rules.Target
	Mint   bool // tokens are minted again, and what they descend from stays good
	Reason string
	// Type is of its event. Empty: the last event of the change is of something that the rule goes with, and if no store
	// takes the change, nothing is revoked.
	Type event.Type
}

// Write puts r into force here, then into the store, together with its event and what c holds already; a nil c holds nothing. While
// the outcome is unknown the rule stays in force here and is tried again until the store has it; one that no store takes stays in
// force until the process ends. store.ErrConflict: what c holds was changed by another writer, and r is not in force.
func (w *Writer) Write(ctx context.Context, c *commit.Change, r Rule) error {
	if c == nil {
		c = commit.NewChange()
	}
	hold := &rules.Held{Target: r.Target, Mint: r.Mint}
	w.Rules.Hold(hold)
	release := func() { w.Rules.Release(hold) }
	if err := w.Add(ctx, c, r.Target, r.Mint, r.Reason); err != nil {
		release()
		return err
	}
	if r.Type != "" {
		w.host.Event(ctx, c, w.eventOf(ctx, r))
	}
	_, err := w.Commit.Commit(ctx, c)
	switch {
	case err == nil, errors.Is(err, store.ErrConflict), r.Type == "" && errors.Is(err, fault.InvalidRequest):
		release()
		return err
	case errors.Is(err, fault.InvalidRequest):
		w.queue.refused(r.Target, err)
		return err
	}
	w.queue.add(r.Target, w.again(c), release)
	return err
}

// End is Write of a rule that a host asked for, of a target that needs no proof.
func (w *Writer) End(ctx context.Context, t rules.Target, reason string) error {
	began := time.Now()
	err := w.Write(ctx, nil, Rule{Target: t, Reason: reason, Type: event.Revoked})
	w.host.Observe(ctx, err, time.Since(began))
	return err
}

// EndBy is End for what write ends: it writes the rules on targets in a change of its own, and does nothing where that was done
// already. ended is what it says.
func (w *Writer) EndBy(ctx context.Context, targets []rules.Target, write func(context.Context) (ended bool, err error)) (ended bool, err error) {
	began := time.Now()
	done := false
	err = w.Ahead(ctx, targets, func(ctx context.Context) error {
		ok, err := write(ctx)
		if !done { // else tried again, after the caller has its answer
			ended, done = ok, true
		}
		return err
	})
	w.host.Observe(ctx, err, time.Since(began))
	return ended, err
}

// Ahead puts rules on targets into force here, then has write write them. As long as the outcome is unknown they stay in force, and
// write is tried again.
func (w *Writer) Ahead(ctx context.Context, targets []rules.Target, write func(context.Context) error) error {
	holds := make([]*rules.Held, len(targets))
	for i, t := range targets {
		holds[i] = &rules.Held{Target: t}
		w.Rules.Hold(holds[i])
	}
	release := func() {
		for _, h := range holds {
			w.Rules.Release(h)
		}
	}
	err := write(ctx)
	if !errors.Is(err, fault.Unavailable) {
		release()
		return err
	}
	carry := w.host.Carry(ctx) // the actor and the origin stay the caller's
	w.queue.add(targets[0], func(ctx context.Context) error { return write(carry(ctx)) }, release)
	return err
}

// Event adds to c what tells of something that was revoked in it.
func (w *Writer) Event(ctx context.Context, c *commit.Change, e Event) { w.host.Event(ctx, c, e) }

// eventOf tells of a rule.
func (w *Writer) eventOf(ctx context.Context, r Rule) Event {
	t := r.Target
	e := Event{Type: r.Type, Reason: r.Reason, Target: t, Subject: t.EventSubject(), Grant: t.EventID(rules.TargetGrant), Token: t.EventID(rules.TargetToken)}
	if t.Issuer == "" { // or it is the name of another's client, which Target tells
		e.Client = t.EventClient()
	}
	w.nameOwner(ctx, &e)
	return e
}

// nameOwner notes whose grant or API key was revoked, where the store says so at once: the rule is in force by now, and does
// not wait for it. Where there is no record the event says so: the ID of a session without a refresh token has none, and one
// with a typing error hasn't either.
func (w *Writer) nameOwner(ctx context.Context, e *Event) {
	if e.Subject != "" || e.Grant == "" && e.Token == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, ownerWait)
	defer cancel()
	kind, id := rules.KindGrant, e.Grant
	if e.Token != "" {
		kind, id = store.KindAPIKey, e.Token
	}
	r, err := w.Commit.Store.Get(ctx, kind, id)
	switch {
	case err == nil:
		e.Subject, e.Client = r.Subject, r.Client
	case errors.Is(err, store.ErrNotFound) && e.Target.Issuer == "" && e.Target.Shown == (rules.Shown{}):
		e.Extra = map[string]string{"found": "no record"}
		if _, bad := opaque.ParseID(id); bad != nil { // no token, grant or key of this service is called that
			e.Extra["found"] = "nothing"
			w.Log.Warn("apitoken: a revocation names nothing that this service made", "target", text.CleanText(e.Target.String()))
		}
	}
}

// Add puts the record of a rule into c.
func (w *Writer) Add(ctx context.Context, c *commit.Change, t rules.Target, mint bool, reason string) error {
	return w.AddUntil(ctx, c, t, mint, reason, w.kept(ctx, t))
}

// AddUntil is Add for a rule that may be purged at expires, Unix ms; 0: once Finish has given it a time.
func (w *Writer) AddUntil(ctx context.Context, c *commit.Change, t rules.Target, mint bool, reason string, expires int64) error {
	now := w.latest()
	r := store.Record{ID: opaque.NewID(now).String(), Type: t.Kind.String(), Expires: expires}
	r.Subject, r.Client, r.Grant, r.Token = t.EventSubject(), t.EventClient(), t.EventID(rules.TargetGrant), t.EventID(rules.TargetToken)
	who := w.host.Actor(ctx)
	reason = strings.ToValidUTF8(reason, "\ufffd")
	x := &rules.Record{V: 1, Target: t, Mint: mint, At: now.UnixMilli(), Reason: reason[:min(len(reason), maxReason)], Actor: who.Subject}
	if who.Issuer != "" { // an older process may ignore it: only Why reads it
		more, err := json.Marshal(ext{ActorIssuer: text.CleanText(who.Issuer)})
		if err != nil {
			return err
		}
		x.Ext.Ext = record.Object(more)
	}
	return commit.Put(c, &rules.RuleForm, r, x, store.Version{})
}

// ext is what rules.Record's Ext may hold.
type ext struct {
	ActorIssuer string `json:"actor_issuer,omitempty"`
}

func (w *Writer) latest() time.Time { return w.Commit.State.Latest(w.Now()) }

// kept is the earliest time to purge a rule on t: after everything that it matches has ended. 0: not before the
// janitor has ended the API keys that it matches, or never.
func (w *Writer) kept(ctx context.Context, t rules.Target) int64 {
	now, longest := w.latest(), w.Space.Life()
	if t.Issuer != "" { // it has neither sessions nor API keys here, and its tokens may live longer than ours
		return now.Add(max(longest.Access, longest.Foreign) + rules.Slack).UnixMilli()
	}
	access := now.Add(max(longest.Access, longest.Same) + rules.Slack)
	// What was prepared before the rule, an approved device's code among it, may be redeemed until it expires.
	session := now.Add(max(longest.Access+longest.Grant, longest.Same, rules.MaxPrepared) + rules.Slack)
	switch t.Kind {
	case rules.TargetToken:
		_, err := w.Commit.Store.Get(ctx, store.KindAPIKey, t.ID)
		if errors.Is(err, store.ErrNotFound) && !w.Lineage.Any(ctx, lineage.Thing, t.ID) {
			return access.UnixMilli()
		}
	case rules.TargetGrant:
		if !w.Lineage.Any(ctx, lineage.Thing, t.ID) {
			return session.UnixMilli()
		}
	case rules.TargetSessions:
		if !w.Lineage.Any(ctx, lineage.Subject, t.ID) {
			return session.UnixMilli()
		}
	case rules.TargetRole:
		return access.UnixMilli()
	}
	return 0
}

// again writes c again, which holds a rule. Where what came with the rule lost a race in the meantime, or was done and
// changed again, the rule is written alone: whoever asked for both was told that it is in force and will be written. If the
// rule is there already, a conflict says so.
func (w *Writer) again(c *commit.Change) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := w.Commit.Commit(ctx, c)
		if !errors.Is(err, store.ErrConflict) || len(c.Puts) == 1 {
			return err
		}
		c = alone(c)
		_, err = w.Commit.Commit(ctx, c)
		return err
	}
}

// alone is c's rule and the last of its events, which is the rule's own.
func alone(c *commit.Change) *commit.Change {
	a := commit.NewChange()
	for _, p := range c.Puts {
		if p.Kind == store.KindRule {
			a.Puts = append(a.Puts, store.Put{Record: p.Record})
		}
	}
	a.Events = c.Events[len(c.Events)-1:]
	return a
}
