// Package rules decides what is revoked. A rule is a stored revocation: a target, a position in the order of state changes, and
// an expiry. A [Book] holds the rules of one issuer; [Book.Hit] says which rule, if any, refuses what a [Subject] describes: a
// token, a grant or an API key.
//
// It owns the stored form of rules, the text of targets and of the positions that tokens carry, and the hashes by which rules
// travel in a feed. It promises that verdicts depend neither on clocks nor on the order in which rules arrive, that a rule in
// force stays in force until everything it can match has expired, and that readers never wait. A rule that cannot be read
// counts as the widest that its record's selectors allow.
//
// Locks: a Book's mutex is a leaf; it guards what is written. Follower and feeds of foreign issuers enter what was read, the root
// holds a rule of its own in force from before its write until the outcome is known, and validators ask.
package rules

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/revindex"
	"github.com/apitoken-go/apitoken/store"
)

// Book holds the rules that this process knows, for one issuer. Readers never wait: the committed rules lie in
// an index behind atomic pointers, the few that are on their way to the store in a copied slice.
type Book struct {
	key     ruleKeyer
	Index   *revindex.Index
	used    [targetKinds]atomic.Uint32 // a bit for each class of which a rule was ever seen: most lookups end here
	all     [ruleClasses]atomic.Int64  // rules on everything
	Pending atomic.Pointer[[]*Held]
	Version atomic.Uint64 // rises after every change; a cached verdict of another version is checked again
	Older   *Book         // what was known under an earlier key of the feed; set once
	Feed    string        // the key and namespace of the feed whose hashes it holds; empty for a service's own
	Undated bool          // no token without positions is looked for in it, so that it keeps no times of rules; set once
	Missing atomic.Bool   // the store lost history: the janitor puts back what recent holds

	mu     sync.Mutex // guards recent and writes to pending
	recent []store.Record
	next   int // where recent goes on when it is full
}

// recentRules bounds what can be put back into a store that lost its tail.
const recentRules = 4096

// Class says what a rule compares. Every class of a target has an entry of its own, in which the latest rule
// wins, so that rules may arrive in any order.
type Class uint8

const (
	classAlways Class = iota // the thing itself
	classBirth               // birth < q
	classView                // view < q: mint again
	classBefore              // iat <= T, where a person named a time
	classWall                // iat <= commit time, for tokens without positions
	ruleClasses
)

// ruleKeyer turns a target into the key of the index.
type ruleKeyer func(c Class, k targetKind, issuer, id, holder string) [16]byte

// LocalKeyer hashes with seeds of this process: nobody outside can make two targets collide.
func LocalKeyer() ruleKeyer {
	one, two := maphash.MakeSeed(), maphash.MakeSeed()
	return func(c Class, k targetKind, issuer, id, holder string) (key [16]byte) {
		for i, seed := range [...]maphash.Seed{one, two} {
			var h maphash.Hash
			h.SetSeed(seed)
			h.WriteByte(byte(c))
			h.WriteByte(byte(k))
			h.WriteString(issuer)
			h.WriteByte(0)
			h.WriteString(id)
			if holder != "" {
				h.WriteByte(0)
				h.WriteString(holder)
			}
			sum := h.Sum64()
			for j := range 8 {
				key[8*i+j] = byte(sum >> (8 * j))
			}
		}
		return key
	}
}

// NewBook makes an empty book whose index keys are made by k.
func NewBook(k ruleKeyer) *Book { return &Book{key: k, Index: revindex.New()} }

// Record is a rule as it is stored. Its position is the record's own, unless Q keeps an earlier one.
type Record struct {
	V      int    `json:"v"`
	Target Target `json:"target"`
	Mint   bool   `json:"mint,omitempty"` // tokens must be minted again; what they descend from stays good
	Q      int64  `json:"q,omitempty"`    // the position it had before it was rewritten or put back
	At     int64  `json:"at"`             // Unix ms, for tokens of issuers without positions
	Reason string `json:"reason,omitempty"`
	Actor  string `json:"actor,omitempty"`
	record.Ext
}

// RuleForm is the stored form of rules.
var RuleForm = record.Form[Record]{Kind: store.KindRule, Check: func(x *Record) error {
	if x.V != 1 || x.Target.IsZero() || x.Q < 0 || x.At < 0 {
		return errors.New("damaged or of a newer version")
	}
	return nil
}}

// ReadRule reads a stored rule.
func ReadRule(r store.Record) (Record, error) {
	var x Record
	err := RuleForm.Read(r, &x)
	if err != nil {
		err = &fault.Error{Code: fault.Unavailable, Detail: "stored rule " + r.ID + " cannot be read", Cause: err}
	}
	if x.Q == 0 {
		x.Q = r.Pos.N
	}
	return x, err
}

// ApplyRecord enters a rule that the store has.
func (b *Book) ApplyRecord(r store.Record) error {
	x, err := ReadRule(r)
	if err != nil {
		return err
	}
	b.enter(x, r.Expires)
	b.keep(r, x.Q < r.Pos.N)
	return nil
}

// SetAside enters what a rule that cannot be read says at most: its record still tells whom it is about and where it stands. ok is
// false where it does not.
func (b *Book) SetAside(r store.Record) (ok bool) {
	x, ok := AtMost(r)
	if ok {
		b.enter(x, 0)
		b.keep(r, false)
	}
	return ok
}

// Widest is the widest rule that a record may stand for. Without selectors it may be about everything: a refused session can
// log in again, while a view that stopped would refuse everybody until the record is repaired.
func Widest(r store.Record) Record {
	x, ok := AtMost(r)
	if !ok {
		x.Target = Everything()
	}
	return x
}

// AtMost is the widest rule that a record may stand for, by its selectors.
func AtMost(r store.Record) (x Record, ok bool) {
	x = Record{V: 1, Q: r.Pos.N, At: r.Written}
	switch r.Type {
	case "token":
		x.Target = Target{Kind: TargetToken, ID: r.Token}
	case "grant":
		x.Target = Target{Kind: TargetGrant, ID: r.Grant}
	case "subject", "sessions":
		x.Target = Target{Kind: TargetSubject, ID: r.Subject}
	case "client":
		x.Target = Target{Kind: TargetClient, ID: r.Client}
	case "role":
		x.Target, x.Mint = Target{Kind: TargetAll}, true // which, nobody knows: all are minted again
	case "everything":
		x.Target = Target{Kind: TargetAll}
	}
	return x, x.Target.Kind == TargetAll || x.Target.ID != ""
}

func (b *Book) keep(r store.Record, rewritten bool) {
	b.mu.Lock()
	i := -1
	if rewritten { // its older form is no longer in the store
		i = slices.IndexFunc(b.recent, func(old store.Record) bool { return old.ID == r.ID })
	}
	if i >= 0 {
		b.recent[i] = r
	} else if len(b.recent) < recentRules {
		b.recent = append(b.recent, r)
	} else {
		b.recent[b.next] = r
		b.next = (b.next + 1) % recentRules
	}
	b.mu.Unlock()
	b.Version.Add(1)
}

func (b *Book) enter(x Record, expires int64) {
	t := x.Target
	switch {
	case !t.Before.IsZero():
		b.raise(classBefore, t, t.Before.Unix(), expires)
		return
	case t.Kind == TargetToken || t.Kind == TargetKey:
		b.raise(classAlways, t, 1, expires)
		return
	case x.Mint || t.Kind == TargetRole:
		b.raise(classView, t, x.Q, expires)
	default:
		b.raise(classBirth, t, x.Q, expires)
	}
	if !b.Undated {
		b.raise(classWall, t, x.At/1000, expires)
	}
}

func (b *Book) raise(c Class, t Target, v, expires int64) {
	if t.Kind == TargetAll {
		for old := b.all[c].Load(); old < v; old = b.all[c].Load() {
			if b.all[c].CompareAndSwap(old, v) {
				break
			}
		}
		return
	}
	k, id, holder := t.Indexed()
	b.Index.Raise(b.key(c, k, t.Issuer, id, holder), v, expires)
	if k == TargetHeld && t.Kind != TargetSessions {
		b.Index.Raise(b.key(c, k, t.Issuer, id, keysOf(holder)), v, expires)
	}
	b.used[k].Or(1 << c)
}

// keysOf stands for the API keys that a holder made, which rules on sessions spare: no client has such a name.
func keysOf(holder string) string { return holder + "\x00" }

// Indexed is what a rule on t is found by. Narrowing to an owner or a holder is either proved before the rule is
// written, for single things, or part of the key.
func (t Target) Indexed() (k targetKind, id, holder string) {
	switch {
	case (t.Kind == TargetSubject || t.Kind == TargetSessions) && t.Holder != "":
		return TargetHeld, t.ID, t.Holder
	case t.Kind == TargetClient && t.Owner != "":
		return TargetHeld, t.Owner, t.ID
	}
	return t.Kind, t.ID, ""
}

// Held is a rule that is in force here while the store has not yet acknowledged it.
type Held struct {
	Target Target
	Mint   bool
}

// Hold brings p into force here, until Release.
func (b *Book) Hold(p *Held) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var now []*Held
	if old := b.Pending.Load(); old != nil {
		now = slices.Clone(*old)
	}
	now = append(now, p)
	b.Pending.Store(&now)
	b.Version.Add(1)
}

// Release ends what Hold began: the rule is stored, or is known never to be.
func (b *Book) Release(p *Held) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.Pending.Load()
	if old == nil {
		return
	}
	now := slices.DeleteFunc(slices.Clone(*old), func(q *Held) bool { return q == p })
	if len(now) == 0 {
		b.Pending.Store(nil)
	} else {
		b.Pending.Store(&now)
	}
	b.Version.Add(1)
}

// Subject is what rules see of a token, a grant or an API key.
type Subject struct {
	Issuer  string // empty: the book's own
	Subject string
	Client  string
	ID      string   // jti or the API key's ID
	Kid     string   // its signing key
	Grant   string   // its session
	Chain   []string // the tokens, grants and API keys it was exchanged from; behind chainClient who held those, behind chainKey what signed them
	Actors  []Principal
	Roles   []string
	Pos     Positions
	Iat     time.Time // the earliest of its own and of what it descends from
	Skew    time.Duration
	Wall    bool     // no positions: compare times
	APIKey  bool     // descends from no session: rules on sessions spare it
	Renews  bool     // a grant at refresh: what is minted now is new, so that "mint again" spares it
	Abroad  *Subject // of a foreign token: what a service's own rules see of it
	// AbroadClient is the client by the name that Issuer gives it, which is none of ours.
	AbroadClient string
}

// Principal is whoever acts, as an issuer names them.
type Principal struct{ Issuer, Subject string }

// Slack is added to every time at which a rule, or what one may match, is purged: for the skew of clocks, and so that nobody has to count
// milliseconds.
const Slack = time.Hour

// MaxPrepared is the longest that a ticket, or the note of a pushed request or a waiting device, can stand for what was confirmed
// before.
const MaxPrepared = 24 * time.Hour

// What marks a client and a signing key in a chain of exchanges: its other entries are IDs of ours, which hold no colon. A
// chain names the keys because who stole one could have what he signed exchanged for what the next key signs.
const (
	ChainClient = "client:"
	ChainKey    = "key:"
)

// Descend moves iat back to when its session was opened, and what it was exchanged from was made: our IDs tell. A cut-off
// that a person names hits what descends from before it, though a refresh or an exchange made it since.
func (x *Subject) Descend() {
	earlier := func(s string) {
		if id, err := opaque.ParseID(s); err == nil {
			if at := id.Time(); at.Before(x.Iat) {
				x.Iat = at
			}
		}
	}
	earlier(x.Grant)
	for _, s := range x.Chain {
		earlier(s)
	}
}

// until is the last second of iat that a rule on everything up to v hits: a clock that is ahead by less than the skew
// escapes none.
func (x *Subject) until(v int64) int64 { return v + int64((x.Skew+time.Second-1)/time.Second) }

// Hit says which rule refuses x, "" for none. The order of rules does not matter, nor that of their arrival.
func (b *Book) Hit(x *Subject) string {
	if p := b.Pending.Load(); p != nil {
		for _, r := range *p {
			if r.matches(x) {
				return r.Target.Kind.String()
			}
		}
	}
	if b.Older != nil {
		if rule := b.Older.Hit(x); rule != "" {
			return rule
		}
	}
	if b.passed(x, TargetAll, "", "", "") {
		return "everything"
	}
	if x.ID != "" && b.passed(x, TargetToken, x.Issuer, x.ID, "") {
		return "token"
	}
	if x.Kid != "" && b.passed(x, TargetKey, "", x.Kid, "") {
		return "signingkey"
	}
	if x.Grant != "" && b.passed(x, TargetGrant, "", x.Grant, "") {
		return "grant"
	}
	for _, g := range x.Chain { // grants, and API keys that were exchanged for an access token
		if client, ok := strings.CutPrefix(g, ChainClient); ok {
			held := client
			if x.APIKey {
				held = keysOf(client)
			}
			if b.passed(x, TargetClient, "", client, "") || b.passed(x, TargetHeld, x.Issuer, x.Subject, held) {
				return "client"
			}
			continue
		}
		if kid, ok := strings.CutPrefix(g, ChainKey); ok {
			if b.passed(x, TargetKey, "", kid, "") {
				return "signingkey"
			}
			continue
		}
		if b.passed(x, TargetGrant, "", g, "") || b.passed(x, TargetToken, "", g, "") {
			return "grant"
		}
	}
	if b.principalHit(x, x.Issuer, x.Subject) {
		return "subject"
	}
	for _, a := range x.Actors {
		if b.principalHit(x, a.Issuer, a.Subject) {
			return "subject"
		}
	}
	if x.Client != "" && b.passed(x, TargetClient, "", x.Client, "") {
		return "client"
	}
	if x.AbroadClient != "" && b.passed(x, TargetClient, x.Issuer, x.AbroadClient, "") {
		return "client"
	}
	for _, r := range x.Roles {
		if b.passed(x, TargetRole, "", r, "") {
			return "role"
		}
	}
	return ""
}

func (b *Book) principalHit(x *Subject, issuer, subject string) bool {
	return subject != "" && (b.passed(x, TargetSubject, issuer, subject, "") ||
		!x.APIKey && b.passed(x, TargetSessions, issuer, subject, "") ||
		x.Client != "" && b.passed(x, TargetHeld, issuer, subject, x.Client))
}

// passed reports whether a rule on one target refuses x.
func (b *Book) passed(x *Subject, k targetKind, issuer, id, holder string) bool {
	return (k == TargetAll || b.used[k].Load() != 0) && b.decides(x, k, issuer, id, holder)
}

// decides is passed for a kind of target that has rules.
func (b *Book) decides(x *Subject, k targetKind, issuer, id, holder string) bool {
	if v, ok := b.at(classAlways, k, issuer, id, holder); ok && v > 0 {
		return true
	}
	if v, ok := b.at(classBefore, k, issuer, id, holder); ok && (x.Iat.IsZero() || x.Iat.Unix() <= x.until(v)) {
		return true
	}
	if x.Wall {
		if b.Undated {
			return true // never asked; a book that cannot tell refuses
		}
		v, ok := b.at(classWall, k, issuer, id, holder)
		return ok && (x.Iat.IsZero() || x.Iat.Unix() <= x.until(v))
	}
	if v, ok := b.at(classBirth, k, issuer, id, holder); ok && x.Pos.Birth.N < v {
		return true
	}
	if x.Renews {
		return false
	}
	v, ok := b.at(classView, k, issuer, id, holder)
	return ok && x.Pos.View.N < v
}

func (b *Book) at(c Class, k targetKind, issuer, id, holder string) (int64, bool) {
	if k == TargetAll {
		v := b.all[c].Load()
		return v, v != 0
	}
	if b.used[k].Load()&(1<<c) == 0 {
		return 0, false
	}
	return b.Index.Get(b.key(c, k, issuer, id, holder))
}

// matches is hit for a rule that has no position yet: whatever it names is refused until it has one.
func (r *Held) matches(x *Subject) bool {
	if r.Mint && x.Renews {
		return false
	}
	t := r.Target
	if !t.Before.IsZero() && !x.Iat.IsZero() && x.Iat.Unix() > x.until(t.Before.Unix()) {
		return false
	}
	k, id, holder := t.Indexed()
	is := func(issuer, subject string) bool { return subject == id && issuer == t.Issuer }
	anyActor := func() bool {
		return slices.ContainsFunc(x.Actors, func(a Principal) bool { return is(a.Issuer, a.Subject) })
	}
	switch k {
	case TargetAll:
		return true
	case TargetToken:
		return x.ID == id && x.Issuer == t.Issuer || slices.Contains(x.Chain, id)
	case TargetKey:
		return x.Kid == id || slices.Contains(x.Chain, ChainKey+id)
	case TargetGrant:
		return x.Grant == id || slices.Contains(x.Chain, id)
	case TargetSubject:
		return is(x.Issuer, x.Subject) || anyActor()
	case TargetSessions:
		return !x.APIKey && (is(x.Issuer, x.Subject) || anyActor())
	case TargetClient:
		if t.Issuer != "" {
			return t.Issuer == x.Issuer && x.AbroadClient == id
		}
		return x.Client == id || slices.Contains(x.Chain, ChainClient+id)
	case TargetHeld:
		return x.Client == holder && (is(x.Issuer, x.Subject) || anyActor()) || is(x.Issuer, x.Subject) && slices.Contains(x.Chain, ChainClient+holder) && !(x.APIKey && t.Kind == TargetSessions)
	case TargetRole:
		return slices.Contains(x.Roles, id)
	}
	return false
}

// Sweep forgets rules that no living token can meet any more.
func (b *Book) Sweep(before time.Time) {
	b.mu.Lock()
	// Once it is full, next is its oldest: what is left is put in order, and filled up again.
	b.recent = append(slices.Clone(b.recent[b.next:]), b.recent[:b.next]...)
	b.next = 0
	b.recent = slices.DeleteFunc(b.recent, func(r store.Record) bool { return r.Expires != 0 && r.Expires < before.UnixMilli() })
	b.mu.Unlock()
	for ; b != nil; b = b.Older {
		b.Index.Sweep(before.UnixMilli())
	}
}

// Signed reports whether a rule refuses all that a key signed.
func (b *Book) Signed(kid string) bool {
	v, ok := b.at(classAlways, TargetKey, "", kid, "")
	return ok && v > 0
}

// Lineage is what must end a token that is exchanged from x: x itself, its session, and the client that held it.
func (x *Subject) Lineage() []string {
	out := append(slices.Clone(x.Chain), x.ID)
	if x.Grant != "" {
		out = append(out, x.Grant)
	}
	if x.Client != "" {
		out = append(out, ChainClient+x.Client)
	}
	if x.Kid != "" {
		out = append(out, ChainKey+x.Kid)
	}
	return out
}

// Ended reports whether a rule has ended the single thing with this ID.
func (b *Book) Ended(id string) bool {
	if p := b.Pending.Load(); p != nil && slices.ContainsFunc(*p, func(r *Held) bool { return r.Target == ByToken(id) }) {
		return true
	}
	v, ok := b.at(classAlways, TargetToken, "", id, "")
	return ok && v > 0
}

// EnterHashed enters a rule as it travels.
func (b *Book) EnterHashed(r feed.Entry) {
	var k targetKind
	for i := TargetToken; i < targetKinds; i++ {
		if targetNames[i] == r.Kind {
			k = i
		}
	}
	c := Class(r.Class)
	if k == TargetNone || c > classBefore {
		// A newer source says something that this program does not know: nothing may pass by it.
		b.raise(classAlways, Target{Kind: TargetAll}, 1, 0)
		return
	}
	b.raiseHashed(c, k, r.Hash, r.Value, r.Expires)
	if c == classBirth || c == classView {
		b.raiseHashed(classWall, k, r.Hash, r.At, r.Expires)
	}
}

func (b *Book) raiseHashed(c Class, k targetKind, key [16]byte, v, expires int64) {
	if k == TargetAll {
		b.raise(c, Target{Kind: TargetAll}, v, 0)
		return
	}
	key[0] ^= byte(c)
	b.Index.Raise(key, v, expires)
	b.used[k].Or(1 << c)
}

// FeedKeyer makes index keys out of the hashes of a feed: HMAC(key, namespace, kind, issuer, id, holder), the class
// mixed into the first byte.
func FeedKeyer(key []byte, namespace string) ruleKeyer {
	return func(c Class, k targetKind, issuer, id, holder string) [16]byte {
		h := HashTarget(key, namespace, k, issuer, id, holder)
		h[0] ^= byte(c)
		return h
	}
}

// HashTarget is what stands for a target in a feed: HMAC-SHA-256 over its parts, cut to 16 bytes.
func HashTarget(key []byte, namespace string, k targetKind, issuer, id, holder string) [16]byte {
	m := hmac.New(sha256.New, key)
	var n [4]byte
	for _, field := range [...]string{"feed1", namespace, k.String(), issuer, id, holder} {
		binary.BigEndian.PutUint32(n[:], uint32(len(field)))
		m.Write(n[:])
		m.Write([]byte(field))
	}
	return [16]byte(m.Sum(nil)[:16])
}

// Hashed is x as it travels.
func (x *Record) Hashed(key []byte, ns string) feed.Entry {
	t := x.Target
	kind, id, holder := t.Indexed()
	e := feed.Entry{Kind: kind.String(), At: x.At / 1000}
	switch {
	case !t.Before.IsZero():
		e.Class, e.Value = uint8(classBefore), t.Before.Unix()
	case kind == TargetToken || kind == TargetKey:
		e.Class, e.Value = uint8(classAlways), 1
	case x.Mint || kind == TargetRole:
		e.Class, e.Value = uint8(classView), x.Q
	default:
		e.Class, e.Value = uint8(classBirth), x.Q
	}
	if kind != TargetAll {
		e.Hash = HashTarget(key, ns, kind, t.Issuer, id, holder)
	}
	return e
}

// EventSubject, EventClient and EventID are what an event about a rule on t says of it.
func (t Target) EventSubject() string {
	switch {
	case t.Kind == TargetSubject || t.Kind == TargetSessions:
		return t.ID
	}
	return t.Owner
}

func (t Target) EventClient() string {
	if t.Kind == TargetClient {
		return t.ID
	}
	return t.Holder
}

func (t Target) EventID(k targetKind) string {
	if t.Kind == k {
		return t.ID
	}
	return ""
}

// Proved takes the narrowing to an owner and a holder out of t once it is known whose the target is. Another's is not found.
func (t *Target) Proved(subject, client string) error {
	if t.Owner != "" && t.Owner != subject || t.Holder != "" && t.Holder != client {
		return fault.Fail(fault.NotFound, "the %s is another's", t.Kind)
	}
	t.Owner, t.Holder, t.Shown = "", "", Shown{}
	return nil
}

// Kept are the records that can be put back into a store that lost them.
func (b *Book) Kept() []store.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]store.Record(nil), b.recent...)
}
