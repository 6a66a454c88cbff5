// The stored form of an event: its members, its JSON, and how it is read.

package auditlog

import (
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/store"
)

// Event is an event as it is stored: the members of the root's Event, whose comments say what they mean. S is the root's Scope.
type Event[S ~string] struct {
	ID          string            `json:"id"`
	Time        time.Time         `json:"time"`
	Type        event.Type        `json:"type"`
	OK          bool              `json:"ok"`
	Reason      string            `json:"reason"`
	Actor       string            `json:"actor"`
	ActorIssuer string            `json:"actor_issuer"`
	Subject     string            `json:"subject"`
	Issuer      string            `json:"issuer"`
	Client      string            `json:"client"`
	TokenID     string            `json:"token_id"`
	Grant       string            `json:"grant"`
	Target      rules.Target      `json:"target"`
	Scopes      []S               `json:"scopes"`
	Count       int               `json:"count"`
	Address     netip.Addr        `json:"address"`
	UserAgent   string            `json:"user_agent"`
	RequestID   string            `json:"request_id"`
	Extra       map[string]string `json:"extra"`
}

const (
	maxBytes = 15 << 10                   // of an event's JSON
	maxExtra = 16                         // members of Extra
	layout   = "2006-01-02T15:04:05.000Z" // RFC 3339, to the millisecond
)

// Room is what the JSON of most events takes, in bytes.
const Room = 384

// Name is what a store's index of events calls a subject or token: names of other issuers never meet ours there.
func Name(issuer, name string) string {
	if issuer == "" || name == "" {
		return name
	}
	h := opaque.Hash("foreign1", []byte(issuer), []byte(name))
	return "~" + base64.RawURLEncoding.EncodeToString(h[:])
}

// Read reads a stored event. Newer members are passed over: an old program may still list a newer log. Unavailable: the record is
// another event's.
func Read[S ~string](r store.Record) (Event[S], error) {
	var e Event[S]
	if err := json.Unmarshal(r.Data, &e); err != nil {
		// One that cannot be read whole keeps nobody from reading those behind it: it is given as its record tells of it.
		e = Event[S]{
			ID: r.ID, Time: time.UnixMilli(r.Written), Type: event.Type(r.Type), Subject: r.Subject, Client: r.Client, Grant: r.Grant, TokenID: r.Token,
			Extra: map[string]string{"unreadable": text.CleanText(err.Error())},
		}
	}
	if e.ID != r.ID {
		return e, fault.Fail(fault.Unavailable, "stored event %q is damaged", r.ID)
	}
	return e, nil
}

// about says of an event with a target whom it is about: lists by subject find it then, and erasure does.
func (e *Event[S]) about() {
	if e.Subject == "" {
		e.Subject = e.Target.EventSubject()
	}
	t := &e.Target
	if e.Issuer == "" && (e.Subject != "" && e.Subject == t.EventSubject() || e.TokenID != "" && e.TokenID == t.EventID(rules.TargetToken)) {
		e.Issuer = t.Issuer
	}
}

// clean makes every name fit for a record. Names may come from another issuer's token or a request: one that a store refuses, for
// a NUL say, would keep this event, and whatever is written with it, out of the log for good.
func (e *Event[S]) clean() {
	for _, name := range [...]*string{&e.Subject, &e.Issuer, &e.ActorIssuer, &e.Client, &e.Grant, &e.TokenID, &e.UserAgent, &e.RequestID} {
		*name = text.CleanText(*name)
	}
}

// data is e's JSON, in the memory of room while that is enough. Of an event that is too large the parts that may be long are cut.
func (e *Event[S]) data(room []byte) []byte {
	b := e.append(room)
	if len(b) <= maxBytes {
		return b
	}

	kept := map[string]string{"cut": "this event was too large"}
	if chain := e.Extra["chain"]; chain != "" { // short, and what a report follows
		kept["chain"] = chain
	}
	e.Extra, e.Scopes = kept, nil
	e.Reason, e.Target = text.CleanText(e.Reason), rules.Target{}
	return e.append(b[:0])
}

// append writes the JSON of e, as encoding/json would: by hand, because an event goes with every token that is issued. It saves
// 5 µs and three allocations, over a tenth of an Issue into memory.
func (e *Event[S]) append(b []byte) []byte {
	b = append(b, `{"id":"`...)
	b = append(b, e.ID...)
	b = append(b, `","time":"`...)
	b = e.Time.UTC().AppendFormat(b, layout)
	b = append(b, `","type":"`...)
	b = append(b, e.Type...)
	if e.OK {
		b = append(b, `","ok":true`...)
	} else {
		b = append(b, `","ok":false`...)
	}
	member := func(name, v string) {
		if v != "" {
			b = append(b, ',', '"')
			b = append(b, name...)
			b = append(b, '"', ':')
			b = text.AppendJSON(b, v)
		}
	}
	member("reason", e.Reason)
	member("actor", e.Actor)
	member("actor_issuer", e.ActorIssuer)
	member("subject", e.Subject)
	member("issuer", e.Issuer)
	member("client", e.Client)
	member("token_id", e.TokenID)
	member("grant", e.Grant)
	if e.Target.Kind != rules.TargetNone {
		member("target", e.Target.String())
	}
	for i, s := range e.Scopes {
		if i == 0 {
			b = append(b, `,"scopes":[`...)
		} else {
			b = append(b, ',')
		}
		b = text.AppendJSON(b, string(s))
	}
	if len(e.Scopes) > 0 {
		b = append(b, ']')
	}
	if e.Count != 0 {
		b = append(b, `,"count":`...)
		b = strconv.AppendInt(b, int64(e.Count), 10)
	}
	if e.Address.IsValid() {
		b = append(b, `,"address":"`...)
		b = e.Address.WithZone("").AppendTo(b)
		b = append(b, '"')
	}
	member("user_agent", e.UserAgent)
	member("request_id", e.RequestID)
	if len(e.Extra) > 0 {
		names := make([]string, 0, len(e.Extra))
		for name := range e.Extra {
			names = append(names, name)
		}
		slices.Sort(names)
		for i, name := range names[:min(len(names), maxExtra)] {
			if i == 0 {
				b = append(b, `,"extra":{`...)
			} else {
				b = append(b, ',')
			}
			b = text.AppendJSON(b, name)
			b = append(b, ':')
			b = text.AppendJSON(b, e.Extra[name])
		}
		b = append(b, '}')
	}
	return append(b, '}')
}
