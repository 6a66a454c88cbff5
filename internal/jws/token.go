// Package jws reads and makes signed JWTs in compact form (RFC 7515, RFC 7519), strictly and in one pass. It knows
// forms, keys and signatures; who is trusted, for whom a token is and whether it still counts is decided elsewhere.
package jws

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Errors of Parse that name the rule.
var (
	errSize      = errors.New("jws: too large")
	errParts     = errors.New("jws: not three parts")
	errBase64    = errors.New("jws: not strict base64url")
	errHeader    = errors.New("jws: a header member that must not be there")
	errAlg       = errors.New("jws: alg is missing")
	errSignature = errors.New("jws: no signature")
)

// Token is a JWT as Parse reads it. Its strings, but SigningInput, are cut out of one buffer, which lives as long as any of them.
type Token struct {
	Header       Header
	Claims       Claims
	SigningInput string
	Signature    []byte

	payload string
	learned bool    // the header was known
	private [8]span // the members that no RFC names, in the payload
	nprivat int
	more    []span
}

type span struct{ from, to int }

// Header is what counts of a JOSE header. Members that would bring a key or an address, or ask for another
// processing, are refused where they stand.
type Header struct {
	Alg, KID, Typ string
	JWK           string // the raw member, only where the caller takes one (RFC 9449 §4.2)
}

// Actor is one of an act chain (RFC 8693 §4.1).
type Actor struct{ Subject, Issuer, ClientID string }

// Claims are the registered claims and this project's own. Times are Unix seconds, 0 where they are missing.
type Claims struct {
	Issuer, Subject                string
	Audience                       []string
	Expires, IssuedAt, NotBefore   int64
	ID, ClientID, Scope, SessionID string
	Roles                          []string
	Actors                         []Actor // nearest first
	// Binding is "jkt:" or "x5t#S256:" and the thumbprint of cnf, "?" where cnf names anything else: what cannot be
	// proved must not pass for unbound.
	Binding  string
	Position string   // pos
	Chain    []string // gra
}

const (
	maxHeaderBytes = 2 << 10
	maxKID         = 255
	maxAudience    = 64
	maxActors      = 8
	maxStrings     = 64
	maxPrivate     = maxMembers - 32 // claims of a host's own: they share an object with ours
)

// Parse reads token, whose signature it does not check. Its size is looked at before anything is decoded.
func Parse(token string, maxBytes int, t *Token) error { return parse(token, maxBytes, t, nil, false) }

// ParseProof is Parse for JWTs that bring their own key in the header.
func ParseProof(token string, maxBytes int, t *Token) error {
	return parse(token, maxBytes, t, nil, true)
}

// Headers are those that tokens with a good signature had: all tokens under one key have the same, to the letter, and it needs
// to be read once. The zero Headers knows none.
type Headers struct {
	known atomic.Pointer[map[string]Header] // by their encoded text; never changed, only replaced

	mu   sync.Mutex // guards writes, and late
	late int        // headers that came when known was full
}

// maxHeaders bounds how many are known. Only an issuer can bring another one: they are signed.
const maxHeaders = 64

// Parse is Parse, which h spares the header.
func (h *Headers) Parse(token string, maxBytes int, t *Token) error {
	return parse(token, maxBytes, t, h, false)
}

// Learn notes the header of a token whose signature was found good under a key that is trusted.
func (h *Headers) Learn(t *Token) {
	if t.learned {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	next := map[string]Header{}
	if old := h.known.Load(); old != nil && len(*old) < maxHeaders {
		maps.Copy(next, *old)
	} else if old != nil {
		// From time to time it begins anew, for keys come and go; not at each header, for there are issuers that write
		// something else into each.
		if h.late++; h.late < 16*maxHeaders {
			return
		}
		h.late = 0
	}
	head := strings.Clone(t.SigningInput[:strings.IndexByte(t.SigningInput, '.')])
	next[head] = Header{Alg: strings.Clone(t.Header.Alg), KID: strings.Clone(t.Header.KID), Typ: strings.Clone(t.Header.Typ)}
	h.known.Store(&next)
}

// find reads a header that is known.
func (h *Headers) find(text string, into *Header) bool {
	if h == nil {
		return false
	}
	known := h.known.Load()
	if known == nil {
		return false
	}
	v, ok := (*known)[text]
	if ok {
		*into = v
	}
	return ok
}

// ParseOpen is Parse for the tokens of issuers with claims of their own making. The header and the JSON are read as strictly, and so
// are cnf and act, which go into t's Claims. Every other member is given to member as it stands, and nothing else of the Claims
// is set. PrivateClaims has those members that neither are reserved nor pass for a claim of RFC 7519 in another case.
func (h *Headers) ParseOpen(token string, maxBytes int, t *Token, member func(name, value string)) error {
	if err := open(token, maxBytes, t, h, false); err != nil {
		return err
	}
	t.Claims, t.nprivat, t.more = Claims{}, 0, nil
	p := scanner{s: t.payload}
	at := 0 // where the member before ended
	err := p.object(func(name string) (err error) {
		from := at + strings.IndexByte(p.s[at:], '"') // of the name: between members there are only marks and space
		p.space()
		value := p.i
		switch name {
		case "cnf":
			err = p.confirmation(&t.Claims)
		case "act":
			err = p.actor(&t.Claims, 0)
		default:
			err = p.skip(1)
		}
		if err != nil {
			return err
		}
		at = p.i
		if name != "cnf" && name != "act" {
			member(name, p.s[value:p.i])
		}
		if claim(name) < 0 && !standard(name) {
			t.own(span{from, p.i})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return p.end()
}

// standard reports whether a reader that overlooks case takes name for a claim of RFC 7519 §4.1.
func standard(name string) bool {
	return slices.ContainsFunc(claimNames[:claimClientID], func(known string) bool { return sameName(known, name) })
}

// ReadText reads the JSON text in value, as ParseOpen gives it; false: it is none.
func ReadText(value string) (string, bool) {
	p := scanner{s: value}
	s, err := p.text()
	return s, err == nil
}

// ReadDate reads a NumericDate in Unix seconds (RFC 7519 §2); false: it is none, or out of range.
func ReadDate(value string) (int64, bool) {
	p := scanner{s: value}
	n, err := p.date()
	return n, err == nil
}

func parse(token string, maxBytes int, t *Token, known *Headers, proof bool) error {
	if err := open(token, maxBytes, t, known, proof); err != nil {
		return err
	}
	return t.parseClaims()
}

// open reads the header, and decodes the payload and the signature.
func open(token string, maxBytes int, t *Token, known *Headers, proof bool) error {
	if len(token) > maxBytes {
		return errSize
	}
	one := strings.IndexByte(token, '.')
	if one <= 0 {
		return errParts
	}
	two := strings.IndexByte(token[one+1:], '.')
	if two <= 0 {
		return errParts
	}
	two += one + 1
	head, body, sig := token[:one], token[one+1:two], token[two+1:]
	if strings.IndexByte(sig, '.') >= 0 {
		return errParts
	}
	if sig == "" {
		return errSignature
	}
	if len(head) > maxHeaderBytes {
		return errSize
	}
	size := decodedSize(len(body)) + decodedSize(len(sig))
	if t.learned = known.find(head, &t.Header); !t.learned {
		size += decodedSize(len(head))
	}
	buf := make([]byte, size)
	b, ok1 := decode64(buf, body)
	buf = buf[len(b):]
	s, ok2 := decode64(buf, sig)
	if !ok1 || !ok2 {
		return errBase64
	}
	t.SigningInput, t.Signature = token[:two], s
	if !t.learned {
		h, ok := decode64(buf[len(s):], head)
		if !ok {
			return errBase64
		}
		if err := t.Header.parse(asString(h), proof); err != nil {
			return err
		}
	}
	t.payload = asString(b)
	return nil
}

// asString is b without a copy; the buffer is written once, before.
func asString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Text is the text of a member of the payload, "" where there is none. It reads the payload again: for proofs, not for
// what every request brings.
func (t *Token) Text(name string) (text string, err error) {
	p := scanner{s: t.payload}
	err = p.object(func(n string) (err error) {
		if n == name {
			text, err = p.text()
			return err
		}
		if sameName(n, name) {
			return errCase
		}
		return p.skip(1)
	})
	return text, err
}

// IsType reports whether typ names the media type want, with or without "application/" (RFC 7515 §4.1.9).
func IsType(typ, want string) bool {
	if len(typ) > len(want) && strings.EqualFold(typ[:min(12, len(typ))], "application/") {
		typ = typ[12:]
	}
	return len(typ) == len(want) && strings.EqualFold(typ, want)
}

var headerNames = [...]string{"alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5u", "x5c", "zip", "enc", "epk", "p2s", "p2c"}

func (h *Header) parse(s string, jwk bool) error {
	*h = Header{}
	p := scanner{s: s}
	err := p.object(func(name string) (err error) {
		switch name {
		case "alg":
			h.Alg, err = p.text()
			return err
		case "kid":
			if h.KID, err = p.text(); err == nil && len(h.KID) > maxKID {
				err = errSize
			}
			return err
		case "typ":
			h.Typ, err = p.text()
			return err
		case "jwk":
			if !jwk || p.peek() != '{' {
				return errHeader
			}
			from := p.i
			if err := p.skip(1); err != nil {
				return err
			}
			h.JWK = p.s[from:p.i]
			return nil
		}
		for _, known := range headerNames {
			if known == name {
				return errHeader
			}
			if strings.EqualFold(known, name) {
				return errCase
			}
		}
		return p.skip(1)
	})
	if err != nil {
		return err
	}
	if h.Alg == "" {
		return errAlg
	}
	return p.end()
}

// claimNames are reserved: a host's own claims never bear them, in whatever case.
var claimNames = [...]string{
	claimIss: "iss", claimSub: "sub", claimAud: "aud", claimExp: "exp", claimIat: "iat", claimNbf: "nbf", claimJTI: "jti",
	claimClientID: "client_id", claimScope: "scope", claimRoles: "roles", claimSID: "sid", claimAct: "act", claimCnf: "cnf",
	claimPos: "pos", claimGra: "gra", claimMayAct: "may_act", claimEvents: "events", claimNonce: "nonce", claimAzp: "azp",
}

const (
	claimIss = iota
	claimSub
	claimAud
	claimExp
	claimIat
	claimNbf
	claimJTI
	claimClientID
	claimScope
	claimRoles
	claimSID
	claimAct
	claimCnf
	claimPos
	claimGra
	claimMayAct // the last four are kept from hosts only
	claimEvents
	claimNonce
	claimAzp
)

// claim is name's place in claimNames, -1 if it is none of them. A switch, because each token asks it a dozen times.
func claim(name string) int {
	switch name {
	case "iss":
		return claimIss
	case "sub":
		return claimSub
	case "aud":
		return claimAud
	case "exp":
		return claimExp
	case "iat":
		return claimIat
	case "nbf":
		return claimNbf
	case "jti":
		return claimJTI
	case "client_id":
		return claimClientID
	case "scope":
		return claimScope
	case "roles":
		return claimRoles
	case "sid":
		return claimSID
	case "act":
		return claimAct
	case "cnf":
		return claimCnf
	case "pos":
		return claimPos
	case "gra":
		return claimGra
	case "may_act":
		return claimMayAct
	case "events":
		return claimEvents
	case "nonce":
		return claimNonce
	case "azp":
		return claimAzp
	}
	return -1
}

func (t *Token) parseClaims() error {
	c := &t.Claims
	*c = Claims{}
	t.nprivat, t.more = 0, nil
	p := scanner{s: t.payload}
	var had uint32  // of claimNames, the ones that were there
	var other names // the host's; none is one of claimNames in another case
	if !p.next('{') {
		return errSyntax
	}
	if p.next('}') {
		return p.end()
	}
	for {
		p.space()
		from := p.i
		if p.peek() != '"' {
			return errSyntax
		}
		name, err := p.text()
		if err != nil {
			return err
		}
		n := claim(name)
		if n >= 0 {
			if had&(1<<n) != 0 {
				return errDouble
			}
			had |= 1 << n
		} else {
			if registered(name) {
				return errCase
			}
			if err := other.add(name); err != nil {
				return err
			}
		}
		if !p.next(':') {
			return errSyntax
		}
		switch n {
		case claimIss:
			c.Issuer, err = p.text()
		case claimSub:
			c.Subject, err = p.text()
		case claimAud:
			c.Audience, err = p.audience()
		case claimExp:
			c.Expires, err = p.date()
		case claimIat:
			c.IssuedAt, err = p.date()
		case claimNbf:
			c.NotBefore, err = p.date()
		case claimJTI:
			c.ID, err = p.text()
		case claimClientID:
			c.ClientID, err = p.text()
		case claimScope:
			c.Scope, err = p.text()
		case claimSID:
			c.SessionID, err = p.text()
		case claimPos:
			c.Position, err = p.text()
		case claimRoles:
			c.Roles, err = p.texts(maxStrings)
		case claimGra:
			c.Chain, err = p.texts(maxStrings)
		case claimAct:
			err = p.actor(c, 0)
		case claimCnf:
			err = p.confirmation(c)
		default:
			if err = p.skip(1); err == nil && n < 0 {
				t.own(span{from, p.i})
			}
		}
		if err != nil {
			return err
		}
		if p.next(',') {
			continue
		}
		if p.next('}') {
			return p.end()
		}
		return errSyntax
	}
}

// registered reports whether name is reserved, in whatever case.
func registered(name string) bool {
	for _, known := range claimNames {
		if sameName(known, name) {
			return true
		}
	}
	return false
}

func (t *Token) own(s span) {
	if t.nprivat < len(t.private) {
		t.private[t.nprivat] = s
		t.nprivat++
		return
	}
	t.more = append(t.more, s)
}

// Payload is a copy of the payload's JSON.
func (t *Token) Payload() []byte { return []byte(t.payload) }

// PrivateClaims is a JSON object of the members that are not registered, nil if there are none.
func (t *Token) PrivateClaims() []byte {
	if t.nprivat == 0 {
		return nil
	}
	size := 1
	for _, list := range [...][]span{t.private[:t.nprivat], t.more} {
		for _, s := range list {
			size += s.to - s.from + 1
		}
	}
	out := make([]byte, 0, size) // a cache keeps it: no more than it takes
	add := func(s span) {
		sep := byte(',')
		if len(out) == 0 {
			sep = '{'
		}
		out = append(out, sep)
		out = append(out, t.payload[s.from:s.to]...)
	}
	for _, s := range t.private[:t.nprivat] {
		add(s)
	}
	for _, s := range t.more {
		add(s)
	}
	return append(out, '}')
}

func (p *scanner) audience() ([]string, error) {
	if p.peek() == '[' {
		return p.texts(maxAudience)
	}
	s, err := p.text()
	if err != nil {
		return nil, err
	}
	return []string{s}, nil
}

func (p *scanner) actor(c *Claims, depth int) error {
	if depth >= maxActors {
		return errDepth
	}
	at := len(c.Actors)
	c.Actors = append(c.Actors, Actor{})
	err := p.object(func(name string) (err error) {
		switch name {
		case "sub":
			c.Actors[at].Subject, err = p.text()
		case "iss":
			c.Actors[at].Issuer, err = p.text()
		case "client_id":
			c.Actors[at].ClientID, err = p.text()
		case "act":
			err = p.actor(c, depth+1)
		default:
			if registered(name) && claim(name) < 0 {
				return errCase
			}
			err = p.skip(1)
		}
		return err
	})
	if err == nil && c.Actors[at].Subject == "" {
		err = errType
	}
	return err
}

func (p *scanner) confirmation(c *Claims) error {
	c.Binding = "?"
	n := 0
	err := p.object(func(name string) error {
		n++
		if name == "jkt" || name == "x5t#S256" {
			s, err := p.text()
			if err != nil {
				return err
			}
			c.Binding = name + ":" + s
			return nil
		}
		n++
		return p.skip(1)
	})
	if n != 1 {
		c.Binding = "?"
	}
	return err
}

// decodedSize is how many bytes n characters of base64url hold.
func decodedSize(n int) int { return n * 3 / 4 }

var value64 = func() (t [256]byte) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for i := range t {
		t[i] = 0xff
	}
	for i := range alphabet {
		t[alphabet[i]] = byte(i)
	}
	return t
}()

// decode64 decodes s into the front of dst, strictly: the standard decoder passes over line breaks. No padding, no
// white space, and the bits that the last character has to spare must be zero.
func decode64(dst []byte, s string) ([]byte, bool) {
	n, i := 0, 0
	var bad byte
	for ; len(s)-i >= 8 && len(dst)-n >= 8; i += 8 { // writes eight bytes, of which two are written again
		in := s[i : i+8]
		a, b, c, d := value64[in[0]], value64[in[1]], value64[in[2]], value64[in[3]]
		e, f, g, h := value64[in[4]], value64[in[5]], value64[in[6]], value64[in[7]]
		bad |= a | b | c | d | e | f | g | h
		high := uint64(a)<<18 | uint64(b)<<12 | uint64(c)<<6 | uint64(d)
		low := uint64(e)<<18 | uint64(f)<<12 | uint64(g)<<6 | uint64(h)
		binary.BigEndian.PutUint64(dst[n:], high<<40|low<<16)
		n += 6
	}
	for ; len(s)-i >= 4; i += 4 {
		a, b, c, d := value64[s[i]], value64[s[i+1]], value64[s[i+2]], value64[s[i+3]]
		bad |= a | b | c | d
		v := uint32(a)<<18 | uint32(b)<<12 | uint32(c)<<6 | uint32(d)
		dst[n], dst[n+1], dst[n+2] = byte(v>>16), byte(v>>8), byte(v)
		n += 3
	}
	if bad&0xc0 != 0 {
		return nil, false
	}
	switch len(s) - i {
	case 1:
		return nil, false
	case 2:
		a, b := value64[s[i]], value64[s[i+1]]
		if (a|b)&0xc0 != 0 || b&0x0f != 0 {
			return nil, false
		}
		dst[n] = a<<2 | b>>4
		n++
	case 3:
		a, b, c := value64[s[i]], value64[s[i+1]], value64[s[i+2]]
		if (a|b|c)&0xc0 != 0 || c&0x03 != 0 {
			return nil, false
		}
		dst[n], dst[n+1] = a<<2|b>>4, b<<4|c>>2
		n += 2
	}
	return dst[:n:n], true
}
