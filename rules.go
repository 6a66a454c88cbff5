package apitoken

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

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/revindex"
	"github.com/apitoken-go/apitoken/store"
)

// ruleBook holds the rules that this process knows, for one issuer. Readers never wait: the committed rules lie in
// an index behind atomic pointers, the few that are on their way to the store in a copied slice.
type ruleBook struct {
	key     ruleKeyer
	index   *revindex.Index
	used    [targetKinds]atomic.Uint32 // a bit for each class of which a rule was ever seen: most lookups end here
	all     [ruleClasses]atomic.Int64  // rules on everything
	pending atomic.Pointer[[]*pendingRule]
	version atomic.Uint64 // rises after every change; a cached verdict of another version is checked again
	older   *ruleBook     // what was known under an earlier key of the feed; set once
	feed    string        // the key and namespace of the feed whose hashes it holds; empty for a service's own
	missing atomic.Bool   // the store lost history: the janitor puts back what recent holds

	mu     sync.Mutex // guards recent and writes to pending
	recent []store.Record
	next   int // where recent goes on when it is full
}

// recentRules bounds what can be put back into a store that lost its tail.
const recentRules = 4096

// ruleClass says what a rule compares. Every class of a target has an entry of its own, in which the latest rule
// wins, so that rules may arrive in any order.
type ruleClass uint8

const (
	classAlways ruleClass = iota // the thing itself
	classBirth                   // birth < q
	classView                    // view < q: mint again
	classBefore                  // iat <= T, where a person named a time
	classWall                    // iat <= commit time, for tokens without positions
	ruleClasses
)

// ruleKeyer turns a target into the key of the index.
type ruleKeyer func(c ruleClass, k targetKind, issuer, id, holder string) [16]byte

// localKeyer hashes with seeds of this process: nobody outside can make two targets collide.
func localKeyer() ruleKeyer {
	one, two := maphash.MakeSeed(), maphash.MakeSeed()
	return func(c ruleClass, k targetKind, issuer, id, holder string) (key [16]byte) {
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

func newRuleBook(k ruleKeyer) *ruleBook { return &ruleBook{key: k, index: revindex.New()} }

// ruleRecord is a rule as it is stored. Its position is the record's own, unless Q keeps an earlier one.
type ruleRecord struct {
	V      int    `json:"v"`
	Target Target `json:"target"`
	Mint   bool   `json:"mint,omitempty"` // tokens must be minted again; what they descend from stays good
	Q      int64  `json:"q,omitempty"`    // the position it had before it was rewritten or put back
	At     int64  `json:"at"`             // Unix ms, for tokens of issuers without positions
	Reason string `json:"reason,omitempty"`
	Actor  string `json:"actor,omitempty"`
}

var ruleForm = record.Form[ruleRecord]{Kind: store.KindRule, Check: func(x *ruleRecord) error {
	if x.V != 1 || x.Target.IsZero() || x.Q < 0 || x.At < 0 {
		return errors.New("damaged or of a newer version")
	}
	return nil
}}

func readRule(r store.Record) (ruleRecord, error) {
	var x ruleRecord
	err := ruleForm.Read(r, &x)
	if err != nil {
		err = &fault.Error{Code: fault.Unavailable, Detail: "stored rule " + r.ID + " can not be read", Cause: err}
	}
	if x.Q == 0 {
		x.Q = r.Pos.N
	}
	return x, err
}

// applyRecord enters a rule that the store has.
func (b *ruleBook) applyRecord(r store.Record) error {
	x, err := readRule(r)
	if err != nil {
		return err
	}
	b.enter(x, r.Expires)
	b.keep(r)
	return nil
}

// setAside enters what a rule that can not be read says at most: its record still tells whom it is about and where it stands. ok is
// false where it does not.
func (b *ruleBook) setAside(r store.Record) (ok bool) {
	x, ok := atMost(r)
	if ok {
		b.enter(x, 0)
		b.keep(r)
	}
	return ok
}

// atMost is the widest rule that a record may stand for, by its selectors.
func atMost(r store.Record) (x ruleRecord, ok bool) {
	x = ruleRecord{V: 1, Q: r.Pos.N, At: r.Written}
	switch r.Type {
	case "token":
		x.Target = Target{kind: targetToken, id: r.Token}
	case "grant":
		x.Target = Target{kind: targetGrant, id: r.Grant}
	case "subject", "sessions":
		x.Target = Target{kind: targetSubject, id: r.Subject}
	case "client":
		x.Target = Target{kind: targetClient, id: r.Client}
	case "role":
		x.Target, x.Mint = Target{kind: targetAll}, true // which, nobody knows: all are minted again
	case "everything":
		x.Target = Target{kind: targetAll}
	}
	return x, x.Target.kind == targetAll || x.Target.id != ""
}

func (b *ruleBook) keep(r store.Record) {
	b.mu.Lock()
	if len(b.recent) < recentRules {
		b.recent = append(b.recent, r)
	} else {
		b.recent[b.next] = r
		b.next = (b.next + 1) % recentRules
	}
	b.mu.Unlock()
	b.version.Add(1)
}

func (b *ruleBook) enter(x ruleRecord, expires int64) {
	t := x.Target
	switch {
	case !t.before.IsZero():
		b.raise(classBefore, t, t.before.Unix(), expires)
		return
	case t.kind == targetToken || t.kind == targetKey:
		b.raise(classAlways, t, 1, expires)
		return
	case x.Mint || t.kind == targetRole:
		b.raise(classView, t, x.Q, expires)
	default:
		b.raise(classBirth, t, x.Q, expires)
	}
	b.raise(classWall, t, x.At/1000, expires)
}

func (b *ruleBook) raise(c ruleClass, t Target, v, expires int64) {
	if t.kind == targetAll {
		for old := b.all[c].Load(); old < v; old = b.all[c].Load() {
			if b.all[c].CompareAndSwap(old, v) {
				break
			}
		}
		return
	}
	k, id, holder := t.indexed()
	b.index.Raise(b.key(c, k, t.issuer, id, holder), v, expires)
	b.used[k].Or(1 << c)
}

// indexed is what a rule on t is found by. Narrowing to an owner or a holder is either proved before the rule is
// written, for single things, or part of the key.
func (t Target) indexed() (k targetKind, id, holder string) {
	switch {
	case (t.kind == targetSubject || t.kind == targetSessions) && t.holder != "":
		return targetHeld, t.id, t.holder
	case t.kind == targetClient && t.owner != "":
		return targetHeld, t.owner, t.id
	}
	return t.kind, t.id, ""
}

// pendingRule is in force here while the store has not yet acknowledged it.
type pendingRule struct {
	target Target
	mint   bool
}

func (b *ruleBook) hold(p *pendingRule) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var now []*pendingRule
	if old := b.pending.Load(); old != nil {
		now = slices.Clone(*old)
	}
	now = append(now, p)
	b.pending.Store(&now)
	b.version.Add(1)
}

func (b *ruleBook) release(p *pendingRule) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.pending.Load()
	if old == nil {
		return
	}
	now := slices.DeleteFunc(slices.Clone(*old), func(q *pendingRule) bool { return q == p })
	if len(now) == 0 {
		b.pending.Store(nil)
	} else {
		b.pending.Store(&now)
	}
	b.version.Add(1)
}

// ruleSubject is what rules see of a token, a grant or an API key.
type ruleSubject struct {
	issuer  string // empty: the book's own
	subject string
	client  string
	id      string   // jti or the API key's ID
	kid     string   // its signing key
	grant   string   // its session
	chain   []string // the tokens, grants and API keys it was exchanged from; behind chainClient who held those, behind chainKey what signed them
	actors  []principal
	roles   []string
	pos     positions
	iat     time.Time // the earliest of its own and of what it descends from
	skew    time.Duration
	wall    bool         // no positions: compare times
	apiKey  bool         // no session: rules on sessions spare it
	renews  bool         // a grant at refresh: what is minted now is new, so that "mint again" spares it
	abroad  *ruleSubject // of a foreign token: what a service's own rules see of it
}

type principal struct{ issuer, subject string }

// What marks a client and a signing key in a chain of exchanges: its other entries are IDs of ours, which hold no colon. A
// chain names the keys because who stole one could have what he signed exchanged for what the next key signs.
const (
	chainClient = "client:"
	chainKey    = "key:"
)

// descend moves iat back to when its session was opened, and what it was exchanged from was made: our IDs tell. A cut-off
// that a person names hits what descends from before it, though a refresh or an exchange made it since.
func (x *ruleSubject) descend() {
	earlier := func(s string) {
		if id, err := opaque.ParseID(s); err == nil {
			if at := id.Time(); at.Before(x.iat) {
				x.iat = at
			}
		}
	}
	earlier(x.grant)
	for _, s := range x.chain {
		earlier(s)
	}
}

// until is the last second of iat that a rule on everything up to v hits: a clock that is ahead by less than the skew
// escapes none.
func (x *ruleSubject) until(v int64) int64 { return v + int64((x.skew+time.Second-1)/time.Second) }

// hit says which rule refuses x, "" for none. The order of rules does not matter, nor that of their arrival.
func (b *ruleBook) hit(x *ruleSubject) string {
	if p := b.pending.Load(); p != nil {
		for _, r := range *p {
			if r.matches(x) {
				return r.target.kind.String()
			}
		}
	}
	if b.older != nil {
		if rule := b.older.hit(x); rule != "" {
			return rule
		}
	}
	if b.passed(x, targetAll, "", "", "") {
		return "everything"
	}
	if x.id != "" && b.passed(x, targetToken, x.issuer, x.id, "") {
		return "token"
	}
	if x.kid != "" && b.passed(x, targetKey, "", x.kid, "") {
		return "signingkey"
	}
	if x.grant != "" && b.passed(x, targetGrant, "", x.grant, "") {
		return "grant"
	}
	for _, g := range x.chain { // grants, and API keys that were exchanged for an access token
		if client, ok := strings.CutPrefix(g, chainClient); ok {
			if b.passed(x, targetClient, "", client, "") || b.passed(x, targetHeld, x.issuer, x.subject, client) {
				return "client"
			}
			continue
		}
		if kid, ok := strings.CutPrefix(g, chainKey); ok {
			if b.passed(x, targetKey, "", kid, "") {
				return "signingkey"
			}
			continue
		}
		if b.passed(x, targetGrant, "", g, "") || b.passed(x, targetToken, "", g, "") {
			return "grant"
		}
	}
	if b.principalHit(x, x.issuer, x.subject) {
		return "subject"
	}
	for _, a := range x.actors {
		if b.principalHit(x, a.issuer, a.subject) {
			return "subject"
		}
	}
	if x.client != "" && b.passed(x, targetClient, "", x.client, "") {
		return "client"
	}
	for _, r := range x.roles {
		if b.passed(x, targetRole, "", r, "") {
			return "role"
		}
	}
	return ""
}

func (b *ruleBook) principalHit(x *ruleSubject, issuer, subject string) bool {
	return subject != "" && (b.passed(x, targetSubject, issuer, subject, "") ||
		!x.apiKey && b.passed(x, targetSessions, issuer, subject, "") ||
		x.client != "" && b.passed(x, targetHeld, issuer, subject, x.client))
}

// passed reports whether a rule on one target refuses x.
func (b *ruleBook) passed(x *ruleSubject, k targetKind, issuer, id, holder string) bool {
	return (k == targetAll || b.used[k].Load() != 0) && b.decides(x, k, issuer, id, holder)
}

// decides is passed for a kind of target that has rules.
func (b *ruleBook) decides(x *ruleSubject, k targetKind, issuer, id, holder string) bool {
	if v, ok := b.at(classAlways, k, issuer, id, holder); ok && v > 0 {
		return true
	}
	if v, ok := b.at(classBefore, k, issuer, id, holder); ok && (x.iat.IsZero() || x.iat.Unix() <= x.until(v)) {
		return true
	}
	if x.wall {
		v, ok := b.at(classWall, k, issuer, id, holder)
		return ok && (x.iat.IsZero() || x.iat.Unix() <= x.until(v))
	}
	if v, ok := b.at(classBirth, k, issuer, id, holder); ok && x.pos.birth.N < v {
		return true
	}
	if x.renews {
		return false
	}
	v, ok := b.at(classView, k, issuer, id, holder)
	return ok && x.pos.view.N < v
}

func (b *ruleBook) at(c ruleClass, k targetKind, issuer, id, holder string) (int64, bool) {
	if k == targetAll {
		v := b.all[c].Load()
		return v, v != 0
	}
	if b.used[k].Load()&(1<<c) == 0 {
		return 0, false
	}
	return b.index.Get(b.key(c, k, issuer, id, holder))
}

// matches is hit for a rule that has no position yet: whatever it names is refused until it has one.
func (r *pendingRule) matches(x *ruleSubject) bool {
	if r.mint && x.renews {
		return false
	}
	t := r.target
	if !t.before.IsZero() && !x.iat.IsZero() && x.iat.Unix() > x.until(t.before.Unix()) {
		return false
	}
	k, id, holder := t.indexed()
	is := func(issuer, subject string) bool { return subject == id && issuer == t.issuer }
	anyActor := func() bool {
		return slices.ContainsFunc(x.actors, func(a principal) bool { return is(a.issuer, a.subject) })
	}
	switch k {
	case targetAll:
		return true
	case targetToken:
		return x.id == id && x.issuer == t.issuer || slices.Contains(x.chain, id)
	case targetKey:
		return x.kid == id || slices.Contains(x.chain, chainKey+id)
	case targetGrant:
		return x.grant == id || slices.Contains(x.chain, id)
	case targetSubject:
		return is(x.issuer, x.subject) || anyActor()
	case targetSessions:
		return !x.apiKey && (is(x.issuer, x.subject) || anyActor())
	case targetClient:
		return x.client == id || slices.Contains(x.chain, chainClient+id)
	case targetHeld:
		return x.client == holder && (is(x.issuer, x.subject) || anyActor()) || is(x.issuer, x.subject) && slices.Contains(x.chain, chainClient+holder)
	case targetRole:
		return slices.Contains(x.roles, id)
	}
	return false
}

// sweep forgets rules that no living token can meet any more.
func (b *ruleBook) sweep(before time.Time) {
	for ; b != nil; b = b.older {
		b.index.Sweep(before.UnixMilli())
	}
}

// signed reports whether a rule refuses all that a key signed.
func (b *ruleBook) signed(kid string) bool {
	v, ok := b.at(classAlways, targetKey, "", kid, "")
	return ok && v > 0
}

// lineage is what must end a token that is exchanged from x: x itself, its session, and the client that held it.
func (x *ruleSubject) lineage() []string {
	out := append(slices.Clone(x.chain), x.id)
	if x.grant != "" {
		out = append(out, x.grant)
	}
	if x.client != "" {
		out = append(out, chainClient+x.client)
	}
	if x.kid != "" {
		out = append(out, chainKey+x.kid)
	}
	return out
}

// ended reports whether a rule has ended the single thing with this ID.
func (b *ruleBook) ended(id string) bool {
	if p := b.pending.Load(); p != nil && slices.ContainsFunc(*p, func(r *pendingRule) bool { return r.target == ByToken(id) }) {
		return true
	}
	v, ok := b.at(classAlways, targetToken, "", id, "")
	return ok && v > 0
}

// enterHashed enters a rule as it travels.
func (b *ruleBook) enterHashed(r hashedRule) {
	var k targetKind
	for i := targetToken; i < targetKinds; i++ {
		if targetNames[i] == r.Kind {
			k = i
		}
	}
	c := r.Class
	if k == targetNone || c > classBefore {
		// A newer source says something that this program does not know: nothing may pass by it.
		b.raise(classAlways, Target{kind: targetAll}, 1, 0)
		return
	}
	b.raiseHashed(c, k, r.Hash, r.Value, r.Expires)
	if c == classBirth || c == classView {
		b.raiseHashed(classWall, k, r.Hash, r.At, r.Expires)
	}
}

func (b *ruleBook) raiseHashed(c ruleClass, k targetKind, key [16]byte, v, expires int64) {
	if k == targetAll {
		b.raise(c, Target{kind: targetAll}, v, 0)
		return
	}
	key[0] ^= byte(c)
	b.index.Raise(key, v, expires)
	b.used[k].Or(1 << c)
}

// feedKeyer makes index keys out of the hashes of a feed: HMAC(key, namespace, kind, issuer, id, holder), the class
// mixed into the first byte.
func feedKeyer(key []byte, namespace string) ruleKeyer {
	return func(c ruleClass, k targetKind, issuer, id, holder string) [16]byte {
		h := hashTarget(key, namespace, k, issuer, id, holder)
		h[0] ^= byte(c)
		return h
	}
}

func hashTarget(key []byte, namespace string, k targetKind, issuer, id, holder string) [16]byte {
	m := hmac.New(sha256.New, key)
	var n [4]byte
	for _, field := range [...]string{"feed1", namespace, k.String(), issuer, id, holder} {
		binary.BigEndian.PutUint32(n[:], uint32(len(field)))
		m.Write(n[:])
		m.Write([]byte(field))
	}
	return [16]byte(m.Sum(nil)[:16])
}

// hashedRule is a rule as it travels, without reason and actor.
type hashedRule struct {
	Class              ruleClass
	Kind               string
	Hash               [16]byte
	Value, At, Expires int64
}

// hashed is x as it travels.
func (x *ruleRecord) hashed(key []byte, ns string) hashedRule {
	t := x.Target
	kind, id, holder := t.indexed()
	e := hashedRule{Kind: kind.String(), At: x.At / 1000}
	switch {
	case !t.before.IsZero():
		e.Class, e.Value = classBefore, t.before.Unix()
	case kind == targetToken || kind == targetKey:
		e.Class, e.Value = classAlways, 1
	case x.Mint || kind == targetRole:
		e.Class, e.Value = classView, x.Q
	default:
		e.Class, e.Value = classBirth, x.Q
	}
	if kind != targetAll {
		e.Hash = hashTarget(key, ns, kind, t.issuer, id, holder)
	}
	return e
}

func (t Target) eventSubject() string {
	switch {
	case t.kind == targetSubject || t.kind == targetSessions:
		return t.id
	}
	return t.owner
}

func (t Target) eventClient() string {
	if t.kind == targetClient {
		return t.id
	}
	return t.holder
}

func (t Target) eventID(k targetKind) string {
	if t.kind == k {
		return t.id
	}
	return ""
}

func (t *Target) proved(subject, client string) error {
	if t.owner != "" && t.owner != subject || t.holder != "" && t.holder != client {
		return fault.Fail(fault.NotFound, "the %s is another's", t.kind)
	}
	t.owner, t.holder = "", ""
	return nil
}

// stands is the version of the book, and whether a rule is on its way.
func (b *ruleBook) stands() (version uint64, pending bool) {
	return b.version.Load(), b.pending.Load() != nil
}

// kept are the records that can be put back into a store that lost them.
func (b *ruleBook) kept() []store.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]store.Record(nil), b.recent...)
}
