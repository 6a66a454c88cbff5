// Scopes and requirements: how they are read, what covers what, and what somebody gets who asks for some.

package apitoken

import (
	"slices"
	"strings"
)

// Scope is one scope-token of RFC 6749 §3.3. "orders" covers "orders:read" and "orders:read:own"; "orders:*" covers
// what lies below "orders:" and not "orders" itself. Otherwise a scope covers only itself: "order" never covers
// "orders", and "*" alone is an ordinary scope without special powers.
type Scope string

const (
	maxScopes     = 256
	maxAudiences  = 16
	maxScopeBytes = 255
)

// Covers reports whether holding s is enough where other is asked for.
func (s Scope) Covers(other Scope) bool {
	if s == other {
		return s != ""
	}
	if n := len(s); n > 2 && s[n-2:] == ":*" {
		return len(other) > n-1 && other[:n-1] == s[:n-1]
	}
	return len(s) > 0 && len(other) > len(s)+1 && other[len(s)] == ':' && other[:len(s)] == s
}

// wellFormed is scope-token of RFC 6749 §3.3, with a limit, and with no empty part between colons.
func (s Scope) wellFormed() bool {
	if s == "" || len(s) > maxScopeBytes || s[0] == ':' || s[len(s)-1] == ':' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c < 0x21 || c > 0x7e || c == '"' || c == '\\' || c == ':' && s[i-1] == ':' {
			return false
		}
	}
	return true
}

// Scopes is a list of scopes. As a literal: apitoken.Scopes{"orders:read", "orders:write"}.
type Scopes []Scope

// ParseScopes reads the space-separated form of RFC 6749 §3.3; "" is none. ErrInvalidScope: bad characters, a space too
// many, one twice, one over 255 bytes, or more than 256.
func ParseScopes(s string) (Scopes, error) { return appendScopes(nil, s) }

// appendScopes is ParseScopes into a list that has room, or none.
func appendScopes(out Scopes, s string) (Scopes, error) {
	if s == "" {
		return nil, nil
	}
	n := strings.Count(s, " ") + 1
	if n > maxScopes {
		return nil, fail(ErrInvalidScope, "%d scopes, at most %d", n, maxScopes)
	}
	if n > cap(out) {
		out = make(Scopes, 0, n)
	}
	for more := true; more; {
		var part string
		part, s, more = strings.Cut(s, " ")
		if !Scope(part).wellFormed() {
			return nil, fail(ErrInvalidScope, "%.40q is no scope (RFC 6749 §3.3)", part)
		}
		out = append(out, Scope(part))
	}
	if n > 1 {
		if twice := firstDouble(out); twice != "" {
			return nil, fail(ErrInvalidScope, "scope %q twice", twice)
		}
	}
	return out, nil
}

// knownScopes is s without what is no scope here, and each scope once: another issuer's names follow other rules than ours,
// and one that we would not write gives nothing and voids nothing.
func knownScopes(s string) string {
	parts := strings.Split(s, " ")
	slices.Sort(parts)
	parts = slices.DeleteFunc(slices.Compact(parts), func(x string) bool { return !Scope(x).wellFormed() })
	return strings.Join(parts, " ")
}

// registry is Config.Scopes; nil: any well-formed scope is known.
type registry map[Scope]string

func (r registry) has(s Scope) bool {
	_, ok := r[s]
	return ok || r == nil
}

// check refuses a list that a program made: each element must be one scope, as its text form would hide a space in one, and known, so
// that a typo is an error where it is made.
func (r registry) check(s Scopes) error {
	if len(s) > maxScopes {
		return fail(ErrInvalidScope, "%d scopes, at most %d", len(s), maxScopes)
	}
	for _, x := range s {
		if !x.wellFormed() {
			return fail(ErrInvalidScope, "%.40q is no scope (RFC 6749 §3.3)", string(x))
		}
		if !r.has(x) {
			return fail(ErrInvalidScope, "scope %q is not in Config.Scopes", x)
		}
	}
	if twice := firstDouble(s); twice != "" {
		return fail(ErrInvalidScope, "scope %q twice", twice)
	}
	return nil
}

func firstDouble(s Scopes) Scope {
	if len(s) <= 8 {
		for i := range s {
			if slices.Contains(s[:i], s[i]) {
				return s[i]
			}
		}
		return ""
	}
	in := slices.Clone(s)
	slices.Sort(in)
	for i := 1; i < len(in); i++ {
		if in[i] == in[i-1] {
			return in[i]
		}
	}
	return ""
}

// Cover reports whether s covers every scope in want; true for an empty want.
func (s Scopes) Cover(want Scopes) bool {
	for _, w := range want {
		if !s.covers(w) {
			return false
		}
	}
	return true
}

func (s Scopes) covers(w Scope) bool {
	for _, have := range s {
		if have.Covers(w) {
			return true
		}
	}
	return false
}

// String is the space-separated form, sorted.
func (s Scopes) String() string {
	switch len(s) {
	case 0:
		return ""
	case 1:
		return string(s[0])
	}
	if !slices.IsSorted(s) {
		s = slices.Clone(s)
		slices.Sort(s)
	}
	n := len(s) - 1
	for _, x := range s {
		n += len(x)
	}
	var b strings.Builder
	b.Grow(n)
	for i, x := range s {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(string(x))
	}
	return b.String()
}

// intersectScopes is what a and b both allow: of each pair of which one covers the other, the narrower.
func intersectScopes(a, b Scopes) Scopes {
	var out Scopes
	for _, x := range a {
		if b.covers(x) {
			out = append(out, x)
			continue
		}
		for _, y := range b {
			if x.Covers(y) {
				out = append(out, y)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// intersectTexts is what of a is also in b, in a's order.
func intersectTexts(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(x string) bool { return !slices.Contains(b, x) })
}

// scopeLimit is the most scopes that somebody may get: what is known, and of that what each list holds which it has met. One that met
// none is the host's own, which gives what it likes.
type scopeLimit struct {
	known  registry
	scopes Scopes // of the lists together
	by     string // who has the last list, for errors; empty: there is none
	whole  bool   // who names no scopes gets all of these; else none
	cuts   bool   // what is named beyond these is left out; else it is refused
}

// meet limits x to what by holds too.
func (x *scopeLimit) meet(by string, held Scopes) {
	if x.by != "" {
		held = intersectScopes(held, x.scopes)
	}
	x.scopes, x.by = held, by
}

// take is what somebody gets who asks for these scopes, in order. ErrInvalidScope: malformed, unknown, or more than x allows.
func (x *scopeLimit) take(asked Scopes) (Scopes, error) {
	if err := x.known.check(asked); err != nil {
		return nil, err
	}
	switch {
	case len(asked) == 0 && x.whole:
		return x.all(), nil
	case x.cuts:
		x.meet("the request", asked)
		return x.all(), nil
	case !x.covers(asked):
		return nil, fail(ErrInvalidScope, "%s may not have all of %q", x.by, asked.String())
	}
	return sortedScopes(asked), nil
}

// all is the whole list in order, without scopes that are not known any more.
func (x *scopeLimit) all() Scopes {
	return slices.DeleteFunc(sortedScopes(x.scopes), func(s Scope) bool { return !x.known.has(s) })
}

func (x *scopeLimit) covers(asked Scopes) bool { return x.by == "" || x.scopes.Cover(asked) }

// Requirement is what a token must hold. The zero Requirement is met by no token.
type Requirement struct {
	kind   requirementKind
	scopes Scopes
}

type requirementKind int8

const (
	requireNothingMeets requirementKind = iota
	requireAll
	requireAny
	requireToken
	requirePublic
)

// AllOf is met by a token that covers every one of the scopes. It panics on a malformed scope, as
// AnyOf does, so that a typo stops the program at start.
func AllOf(scope Scope, more ...Scope) Requirement { return require(requireAll, scope, more) }

// AnyOf is met by a token that covers at least one of the scopes.
func AnyOf(scope Scope, more ...Scope) Requirement { return require(requireAny, scope, more) }

func require(k requirementKind, scope Scope, more Scopes) Requirement {
	r := Requirement{kind: k, scopes: append(Scopes{scope}, more...)}
	for _, s := range r.scopes {
		if !s.wellFormed() {
			panic("apitoken: " + string(s) + " is no scope (RFC 6749 §3.3)")
		}
	}
	return r
}

// Authenticated is met by every valid token.
func Authenticated() Requirement { return Requirement{kind: requireToken} }

// Public is met without a token. A bad token is refused all the same.
func Public() Requirement { return Requirement{kind: requirePublic} }

// Scopes returns a copy of the scopes, for challenges and pages.
func (r Requirement) Scopes() Scopes { return slices.Clone(r.scopes) }

func (r Requirement) public() bool { return r.kind == requirePublic }

// String says what is required, such as "all of orders:read".
func (r Requirement) String() string {
	switch r.kind {
	case requireAll:
		return "all of " + r.scopes.String()
	case requireAny:
		return "any of " + r.scopes.String()
	case requireToken:
		return "any valid token"
	case requirePublic:
		return "nothing"
	}
	return "what no token holds"
}

// heldScopes are the scopes of a token, in order: what covers another comes before it.
type heldScopes struct {
	sorted Scopes
}

// prepareScopes takes over s if it is sorted.
func prepareScopes(s Scopes) heldScopes {
	if !slices.IsSorted(s) {
		s = slices.Clone(s)
		slices.Sort(s)
	}
	return heldScopes{s}
}

// allows reports whether want is covered. Few scopes are compared one by one; many are searched for want itself,
// then for each of its parents.
func (h heldScopes) allows(want Scope) bool {
	if want == "" {
		return false
	}
	if len(h.sorted) <= 12 {
		return h.sorted.covers(want)
	}
	if h.has(want) {
		return true
	}
	for i := len(want) - 1; i > 0; i-- {
		if want[i] == ':' && i+1 < len(want) && (h.has(want[:i]) || h.hasBelow(want[:i+1])) {
			return true
		}
	}
	return false
}

func (h heldScopes) has(s Scope) bool {
	_, ok := slices.BinarySearch(h.sorted, s)
	return ok
}

// hasBelow looks for dir + "*", where dir ends with a colon.
func (h heldScopes) hasBelow(dir Scope) bool {
	for _, s := range h.sorted {
		if len(s) == len(dir)+1 && s[len(dir)] == '*' && s[:len(dir)] == dir {
			return true
		}
	}
	return false
}

func (h heldScopes) meets(r Requirement) bool {
	switch r.kind {
	case requireAll:
		for _, s := range r.scopes {
			if !h.allows(s) {
				return false
			}
		}
		return true
	case requireAny:
		return slices.ContainsFunc(r.scopes, h.allows)
	case requireToken, requirePublic:
		return true
	}
	return false
}

// scopesOf makes scopes of the texts that a package behind this one keeps; texts is the way back.
func scopesOf(list []string) (s Scopes) {
	s = slices.Grow(s, len(list))
	for _, x := range list {
		s = append(s, Scope(x))
	}
	return s
}

func (s Scopes) texts() (list []string) {
	list = slices.Grow(list, len(s))
	for _, x := range s {
		list = append(list, string(x))
	}
	return list
}

// sortedScopes is a fresh list in order, each once.
func sortedScopes(in Scopes) Scopes {
	if len(in) == 0 {
		return nil
	}
	out := slices.Clone(in)
	slices.Sort(out)
	return slices.Compact(out)
}
