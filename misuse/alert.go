package misuse

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
)

// Detector names what was seen.
type Detector string

// The detectors. The package comment says when each alerts.
const (
	Reuse           Detector = "reuse"
	AfterRevocation Detector = "after-revocation" // whoever kept a copy of a revoked token can cause it: mind what a policy revokes for it
	Addresses       Detector = "addresses"
	UserAgents      Detector = "user-agents"
	ScopeProbing    Detector = "scope-probing"
	ClientFailures  Detector = "client-failures"
	UnknownTokens   Detector = "unknown-tokens"
	Rise            Detector = "rise"
	Canary          Detector = "canary"
)

// Alert is what a detector saw.
type Alert struct {
	Detector Detector
	Time     time.Time // when the threshold was passed
	// Authentic says that nobody without an authentic credential can make this evidence. Without it nothing is revoked.
	Authentic bool
	// Token is the one that the evidence is about; zero when there is none, or when only IDs are known of it.
	Token                           apitoken.Token
	Subject, Client, Grant, TokenID string // as far as known; of the token, except where the detector is about a client
	Evidence                        Evidence
}

// Evidence is what an alert rests on.
type Evidence struct {
	Count      int           // of what the detector counts: networks, changes, refusals, failures, calls
	Limit      int           // the threshold that Count has passed
	Usual      int           // rise: the highest count of the client's before
	Within     time.Duration // the time that Count covers, at most
	Addresses  []netip.Addr  // seen of late, the last one last; at most eight
	UserAgents []string      // seen of late, the last one last; at most four of 128 bytes
	EventID    string        // reuse: of the event that told of it
}

// Action is what to do about an alert.
type Action int

// What a policy may answer. A narrower action is taken where an alert does not know the target of a wider one, such as the
// grant of an API key.
const (
	Tell          Action = iota // the alert event alone
	RevokeToken                 // the token, or its grant where no token is known
	RevokeGrant                 // the session that it belongs to
	RevokeSubject               // all that its subject holds
)

var actionNames = [...]string{"tell", "revoke token", "revoke grant", "revoke subject"}

// String is the action's name as alert events carry it.
func (a Action) String() string {
	if a < 0 || int(a) >= len(actionNames) {
		return "action " + strconv.Itoa(int(a))
	}
	return actionNames[a]
}

// target is what action means for a, the zero Target if there is nothing. own is the issuer of the service.
func (a *Alert) target(action Action, own string) apitoken.Target {
	foreign := ""
	if !a.Token.IsZero() && a.Token.Issuer() != own {
		foreign = a.Token.Issuer()
	}
	of := func(t apitoken.Target) apitoken.Target {
		if foreign != "" {
			t = t.OfIssuer(foreign)
		}
		return t
	}
	switch {
	case action == RevokeSubject && a.Subject != "":
		return of(apitoken.BySubject(a.Subject))
	case (action == RevokeSubject || action == RevokeGrant) && a.Grant != "" && foreign == "":
		return apitoken.ByGrant(a.Grant)
	case action > Tell && a.TokenID != "":
		return of(apitoken.ByToken(a.TokenID))
	case action == RevokeToken && a.Grant != "" && foreign == "":
		return apitoken.ByGrant(a.Grant)
	}
	return apitoken.Target{}
}

// told is an alert with what was done about it, until it stands in the audit log.
type told struct {
	alert   Alert
	action  Action
	target  apitoken.Target
	outcome string
}

// event is the alert as the audit log keeps it.
func (t *told) event() apitoken.Event {
	a, ev := &t.alert, &t.alert.Evidence
	e := apitoken.Event{
		Reason: string(a.Detector), Actor: actor, Subject: a.Subject, Client: a.Client, Grant: a.Grant, TokenID: a.TokenID,
		Target: t.target, Count: ev.Count,
		Extra: map[string]string{
			"action": t.action.String(), "authentic": strconv.FormatBool(a.Authentic), "limit": strconv.Itoa(ev.Limit),
			"seen": a.Time.UTC().Format(time.RFC3339),
		},
	}
	set := func(name, value string) {
		if value != "" {
			e.Extra[name] = value
		}
	}
	if !a.Authentic && a.Client != "" { // a name that nobody proved is no fact
		e.Client = ""
		set("claimed_client", strconv.QuoteToASCII(a.Client))
	}
	if !a.Token.IsZero() {
		e.Issuer = a.Token.Issuer() // of Subject and TokenID; the log leaves out the service's own
	}
	set("outcome", t.outcome)
	set("event", ev.EventID)
	if ev.Usual > 0 {
		set("usual", strconv.Itoa(ev.Usual))
	}
	if ev.Within > 0 {
		set("within", ev.Within.String())
	}
	addresses := make([]string, len(ev.Addresses))
	for i, x := range ev.Addresses {
		addresses[i] = x.String()
	}
	set("addresses", strings.Join(addresses, " "))
	quoted := make([]string, len(ev.UserAgents))
	for i, x := range ev.UserAgents {
		quoted[i] = strconv.QuoteToASCII(x)
	}
	set("user_agents", strings.Join(quoted, " "))
	return e
}

// origin is where the last of the evidence came from: the event's own place for it.
func (t *told) origin() (o apitoken.Origin) {
	if n := len(t.alert.Evidence.Addresses); n > 0 {
		o.Address = t.alert.Evidence.Addresses[n-1]
	}
	if n := len(t.alert.Evidence.UserAgents); n > 0 {
		o.UserAgent = t.alert.Evidence.UserAgents[n-1]
	}
	return o
}

// actor is who acts, in the events of revocations and alerts.
const actor = "misuse"

// act asks the policy and revokes, before anything is recorded. Close does not interrupt it.
func (w *Watch) act(a Alert) *told {
	t := &told{alert: a}
	ctx := apitoken.WithOrigin(apitoken.WithActor(context.Background(), actor), t.origin())
	t.action, t.outcome = w.ask(ctx, a)
	switch {
	case t.action <= Tell || int(t.action) >= len(actionNames):
		if t.action != Tell {
			t.outcome = "no such action"
		}
		return t
	case !a.Authentic:
		t.outcome = "refused: this evidence can be made without an authentic credential"
		return t
	}
	target := a.target(t.action, w.own)
	switch {
	case target.IsZero():
		t.outcome = "there is nothing to revoke"
		return t
	case a.Detector == Reuse && target == apitoken.ByGrant(a.Grant):
		t.outcome = "the service has revoked it"
		return t
	}
	t.target, t.outcome = target, "done"
	ctx, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	if err := w.svc.Revoke(ctx, target, "misuse: "+string(a.Detector)); err != nil {
		t.outcome = "in force in one process, not known to be in the store"
		w.log.Error("misuse: a revocation is not in the store yet", "detector", string(a.Detector), "target", target, "error", err)
	}
	return t
}

// ask calls the policy. One that panics has said nothing.
func (w *Watch) ask(ctx context.Context, a Alert) (action Action, outcome string) {
	if w.c.Policy == nil {
		return Tell, ""
	}
	defer func() {
		if p := recover(); p != nil {
			w.log.Error("misuse: the policy panicked", "detector", string(a.Detector), "panic", p)
			action, outcome = Tell, "the policy panicked"
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	return w.c.Policy(ctx, a), ""
}
