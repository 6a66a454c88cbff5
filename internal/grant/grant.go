// Package grant owns the sessions of a service: the stored record of one, in JSON and in the compact form that every refresh reads and
// writes, what rules see of it and when it has ended; which ones there are, and how many one subject may have.
//
// It promises that a record comes back as it was written, in either form, and that one which lacks what a session cannot be without is
// refused; golden files of the root hold the bytes. A subject's sessions are never more than its limit, whichever process opens them:
// the oldest in use end in the change that opens another.
//
// Order: a session is alive by its times first, then by the rules. Open takes the subject's turn (internal/quota), and holds no other
// lock while it asks the store. The root's logins, refreshes, listings and copies call it. S is the root's Scope.
package grant

import (
	"encoding/json"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/ratchet"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Kind is of the records of this package: one for each session, however often it refreshes.
const Kind = rules.KindGrant

// Slack is how long the record of a session is kept behind its end, so that what comes late is told from junk.
const Slack = 24 * time.Hour

// Record is a session as it is stored. Of its refresh token it holds a hash: whoever reads the store cannot make one.
type Record[S ~string] struct {
	V         int             `json:"v"`
	Subject   string          `json:"sub"`
	Client    string          `json:"client"`
	Scopes    []S             `json:"scopes,omitempty"`
	Roles     []string        `json:"roles,omitempty"`
	Audiences []string        `json:"aud"`
	Claims    json.RawMessage `json:"claims,omitempty"`
	Binding   string          `json:"binding,omitempty"`
	Birth     store.Position  `json:"birth"`
	Created   int64           `json:"created"` // Unix ms, as all times here
	Expires   int64           `json:"expires"`
	Idle      int64           `json:"idle,omitempty"`    // ms; 0: no limit
	Life      int64           `json:"life,omitempty"`    // of access tokens, s
	Refreshed int64           `json:"refreshed"`         // when it was opened or refreshed last
	Rotated   int64           `json:"rotated,omitempty"` // the same by the clock of the store that it was copied from
	Address   string          `json:"addr,omitempty"`
	UserAgent string          `json:"ua,omitempty"`

	ratchet.State // of its refresh token

	// The access token that came with Seq, so that a repeated answer is the same.
	JTI    string   `json:"jti"`
	IAT    int64    `json:"iat"` // Unix ms
	EXP    int64    `json:"exp"`
	Narrow []S      `json:"narrow,omitempty"`
	For    []string `json:"for,omitempty"`   // its audiences, where they are fewer than the session's
	Bound  string   `json:"bound,omitempty"` // its binding, where it is not the session's

	// Owed says that nobody has noted that the answer with Seq went out: without a grace window it may be asked for once more.
	Owed bool `json:"owed,omitempty"`
	record.Ext
}

// Form is the form of a session.
func Form[S ~string]() *record.Form[Record[S]] {
	return &record.Form[Record[S]]{Kind: Kind, Check: check[S], Pack: pack[S]}
}

// check refuses a record of a newer version, and one without what every session has.
func check[S ~string](g *Record[S]) error {
	if g.V != 1 || g.Subject == "" || g.Client == "" || len(g.Audiences) == 0 || g.Expires <= 0 {
		return commit.ErrVersion
	}
	return nil
}

// pack is the compact form. Every refresh reads one and writes one.
func pack[S ~string](p *record.Pack, g *Record[S]) {
	v, history := int64(g.V), int64(g.Birth.History)
	p.Int(&v)
	p.Text(&g.Subject)
	p.Text(&g.Client)
	record.Texts(p, &g.Scopes)
	record.Texts(p, &g.Roles)
	record.Texts(p, &g.Audiences)
	p.JSON(&g.Claims)
	p.Text(&g.Binding)
	p.Int(&history)
	p.Int(&g.Birth.N)
	p.Int(&g.Created)
	p.Int(&g.Expires)
	p.Int(&g.Idle)
	p.Int(&g.Life)
	p.Int(&g.Refreshed)
	p.Int(&g.Rotated)
	p.Text(&g.Address)
	p.Text(&g.UserAgent)

	p.Uint32(&g.Seq)
	p.Fixed(g.Hash[:])
	p.Fixed(g.Nonce[:])
	p.Fixed(g.NextKID[:])
	p.Fixed(g.TagKID[:])
	p.Text(&g.JTI)
	p.Int(&g.IAT)
	p.Int(&g.EXP)
	record.Texts(p, &g.Narrow)
	record.Texts(p, &g.For)
	p.Text(&g.Bound)
	p.Bool(&g.Owed)
	p.Ext(&g.Ext)
	g.V, g.Birth.History = int(v), uint64(history)
}

// Written is when the refresh token rotated last, by the store's clock, where r is the stored record.
func (g *Record[S]) Written(r store.Record) int64 {
	if g.Rotated != 0 {
		return g.Rotated
	}
	return r.Written
}

// kept is when the record may be purged, Unix ms.
func (g *Record[S]) kept() int64 { return g.Expires + Slack.Milliseconds() }

// Seen is what rules see of the session with the ID id, and of what is made under it.
func (g *Record[S]) Seen(id string) *rules.Subject {
	x := &rules.Subject{Subject: g.Subject, Client: g.Client, Grant: id, Iat: time.UnixMilli(g.Created),
		Pos: rules.Positions{Birth: g.Birth, View: g.Birth}, Renews: true}
	x.Descend()
	return x
}

// Alive says by what the session with the ID id has ended: its time, idleness, or a rule of book. fault.InvalidGrant.
func (g *Record[S]) Alive(id string, book *rules.Book, now time.Time) error {
	switch ms := now.UnixMilli(); {
	case ms/1000 >= g.Expires/1000: // exp is in whole seconds: a token of its last part would outlive it
		return fault.Fail(fault.InvalidGrant, "the grant has expired")
	case g.Idle > 0 && ms >= g.Refreshed+g.Idle:
		return fault.Fail(fault.InvalidGrant, "the grant was idle for too long")
	}
	if rule := book.Hit(g.Seen(id)); rule != "" {
		return fault.Fail(fault.InvalidGrant, "a rule on its %s", rule)
	}
	return nil
}
