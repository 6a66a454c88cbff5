// A strict scanner of JSON: no name twice, none in another case, no surprise of depth or size.

package jws

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// The scanner reads JSON more strictly than RFC 8259 asks, because what two readers could understand differently must
// not count: a name twice in one object, also when written with other escapes or in another case; text that is not
// UTF-8; lone surrogates; numbers that no claim needs; anything behind the value.

const (
	maxDepth   = 16
	maxMembers = 256
	maxNumber  = 40 // characters
)

// Errors of reading. They name the rule, never the input.
var (
	errSyntax  = errors.New("jws: not strict JSON")
	errDouble  = errors.New("jws: a name twice in one object")
	errCase    = errors.New("jws: a registered name in another case")
	errUTF8    = errors.New("jws: text is not valid UTF-8")
	errDepth   = errors.New("jws: nested too deeply")
	errMembers = errors.New("jws: too many members")
	errNumber  = errors.New("jws: number out of range")
	errType    = errors.New("jws: a registered member of the wrong type")
)

type scanner struct {
	s string
	i int
}

func (p *scanner) space() {
	for p.i < len(p.s) {
		switch p.s[p.i] {
		case ' ', '\t', '\n', '\r':
			p.i++
		default:
			return
		}
	}
}

// next skips space and reports whether c comes, consuming it.
func (p *scanner) next(c byte) bool {
	if p.i >= len(p.s) || p.s[p.i] <= ' ' { // mostly there is none
		p.space()
	}
	if p.i < len(p.s) && p.s[p.i] == c {
		p.i++
		return true
	}
	return false
}

func (p *scanner) peek() byte {
	p.space()
	if p.i < len(p.s) {
		return p.s[p.i]
	}
	return 0
}

func (p *scanner) end() error {
	p.space()
	if p.i != len(p.s) {
		return errSyntax
	}
	return nil
}

// text reads a string. Without escapes it is cut out of the input.
func (p *scanner) text() (string, error) {
	if !p.next('"') {
		return "", errType
	}
	from := p.i
	end, ascii := plainEnd(p.s, from)
	if p.i = end; end == len(p.s) {
		return "", errSyntax
	}
	switch p.s[end] {
	case '"':
		out := p.s[from:end]
		p.i++
		if !ascii && !utf8.ValidString(out) {
			return "", errUTF8
		}
		return out, nil
	case '\\':
		return p.escaped(from)
	}
	return "", errSyntax // a control character
}

// plainEnd is where the text from i on has its first quote, backslash or control character, and whether all before is ASCII.
// It looks at eight bytes at a time: most of a token is text.
func plainEnd(s string, i int) (end int, ascii bool) {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	var all uint64
	for ; len(s)-i >= 8; i += 8 {
		w := binary.LittleEndian.Uint64(asBytes(s[i:]))
		quote, slash := w^('"'*ones), w^('\\'*ones)
		// The highest bit of each byte that is one of them; above the first it may be another's too.
		if m := ((quote-ones)&^quote | (slash-ones)&^slash | (w-' '*ones)&^w) & highs; m != 0 {
			n := bits.TrailingZeros64(m) &^ 7
			return i + n/8, (all|w&(1<<n-1))&highs == 0
		}
		all |= w
	}
	for ; i < len(s); i++ {
		c := s[i]
		if c == '"' || c == '\\' || c < ' ' {
			break
		}
		all |= uint64(c)
	}
	return i, all&highs == 0
}

func (p *scanner) escaped(from int) (string, error) {
	out := []byte(p.s[from:p.i])
	for p.i < len(p.s) {
		c := p.s[p.i]
		p.i++
		switch {
		case c == '"':
			if !utf8.Valid(out) {
				return "", errUTF8
			}
			return string(out), nil
		case c < 0x20:
			return "", errSyntax
		case c != '\\':
			out = append(out, c)
			continue
		}
		if p.i == len(p.s) {
			return "", errSyntax
		}
		c = p.s[p.i]
		p.i++
		switch c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, ok := p.hex4()
			if !ok {
				return "", errSyntax
			}
			if utf16.IsSurrogate(r) {
				if !strings.HasPrefix(p.s[p.i:], `\u`) {
					return "", errUTF8
				}
				p.i += 2
				low, ok := p.hex4()
				if !ok {
					return "", errSyntax
				}
				if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
					return "", errUTF8
				}
			}
			out = utf8.AppendRune(out, r)
		default:
			return "", errSyntax
		}
	}
	return "", errSyntax
}

func (p *scanner) hex4() (rune, bool) {
	if len(p.s)-p.i < 4 {
		return 0, false
	}
	var r rune
	for _, c := range []byte(p.s[p.i : p.i+4]) {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	p.i += 4
	return r, true
}

// number reads the text of a number.
func (p *scanner) number() (string, error) {
	p.space()
	from := p.i
	if p.i < len(p.s) && p.s[p.i] == '-' {
		p.i++
	}
	digits := func() int {
		at := p.i
		for p.i < len(p.s) && p.s[p.i] >= '0' && p.s[p.i] <= '9' {
			p.i++
		}
		return p.i - at
	}
	lead := p.i
	if n := digits(); n == 0 || n > 1 && p.s[lead] == '0' {
		return "", errSyntax
	}
	if p.i < len(p.s) && p.s[p.i] == '.' {
		p.i++
		if digits() == 0 {
			return "", errSyntax
		}
	}
	if p.i < len(p.s) && (p.s[p.i] == 'e' || p.s[p.i] == 'E') {
		p.i++
		if p.i < len(p.s) && (p.s[p.i] == '+' || p.s[p.i] == '-') {
			p.i++
		}
		if n := digits(); n == 0 {
			return "", errSyntax
		} else if n > 3 {
			return "", errNumber
		}
	}
	if p.i-from > maxNumber {
		return "", errNumber
	}
	return p.s[from:p.i], nil
}

const lastSecond = 253402300799 // 9999-12-31

// date reads a NumericDate (RFC 7519 §2): whole seconds, a fraction cut off. Exponents, though JSON, are refused: no
// issuer writes them, and they hide absurd values.
func (p *scanner) date() (int64, error) {
	if c := p.peek(); c != '-' && (c < '0' || c > '9') {
		return 0, errType
	}
	s, err := p.number()
	if err != nil {
		return 0, err
	}
	var v int64
	for i := range len(s) {
		c := s[i]
		if c == '.' {
			if strings.ContainsAny(s[i:], "eE") {
				return 0, errNumber
			}
			break
		}
		if c < '0' || c > '9' {
			return 0, errNumber
		}
		if v = v*10 + int64(c-'0'); v > lastSecond {
			return 0, errNumber
		}
	}
	return v, nil
}

// names finds a name that stands twice in one object. It holds the first few without an allocation; what comes after them
// is looked up, so that an object of many names costs no more than its length.
type names struct {
	first [16]string
	n     int
	all   map[string]struct{} // folded; made when first is full
}

func (s *names) add(name string) error {
	if s.n < len(s.first) {
		for _, old := range s.first[:s.n] {
			if sameName(old, name) {
				return errDouble
			}
		}
		s.first[s.n] = name
		s.n++
		return nil
	}
	if s.n >= maxMembers {
		return errMembers
	}
	if s.all == nil {
		s.all = make(map[string]struct{}, 2*len(s.first))
		for _, old := range s.first {
			s.all[folded(old)] = struct{}{}
		}
	}
	name = folded(name)
	if _, there := s.all[name]; there {
		return errDouble
	}
	s.all[name] = struct{}{}
	s.n++
	return nil
}

// folded is the same text for all names that sameName takes for one, and name itself where that is in small letters.
func folded(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= utf8.RuneSelf {
			least := r
			for o := unicode.SimpleFold(r); o != r; o = unicode.SimpleFold(o) {
				least = min(least, o)
			}
			r = least // a capital, also an ASCII one: k and s have more than two forms
		}
		if r >= 'A' && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, name)
}

// sameName takes names that differ in case alone for one, as many readers do.
func sameName(a, b string) bool {
	if len(a) == len(b) && a == b {
		return true
	}
	if d := len(a) - len(b); d > 4*len(a) || -d > 4*len(b) {
		return false
	}
	return strings.EqualFold(a, b)
}

// object calls member for each name, which must consume the value.
func (p *scanner) object(member func(name string) error) error {
	if !p.next('{') {
		return errType
	}
	if p.next('}') {
		return nil
	}
	var seen names
	for {
		if p.peek() != '"' {
			return errSyntax
		}
		name, err := p.text()
		if err != nil {
			return err
		}
		if err := seen.add(name); err != nil {
			return err
		}
		if !p.next(':') {
			return errSyntax
		}
		if err := member(name); err != nil {
			return err
		}
		if p.next(',') {
			continue
		}
		if p.next('}') {
			return nil
		}
		return errSyntax
	}
}

// skip reads any value, as strictly as the ones that count.
func (p *scanner) skip(depth int) error {
	if depth > maxDepth {
		return errDepth
	}
	switch c := p.peek(); {
	case c == '{':
		return p.object(func(string) error { return p.skip(depth + 1) })
	case c == '[':
		p.i++
		if p.next(']') {
			return nil
		}
		for n := 0; ; n++ {
			if n > 4*maxMembers {
				return errMembers
			}
			if err := p.skip(depth + 1); err != nil {
				return err
			}
			if p.next(']') {
				return nil
			}
			if !p.next(',') {
				return errSyntax
			}
		}
	case c == '"':
		_, err := p.text()
		return err
	case c == '-' || c >= '0' && c <= '9':
		_, err := p.number()
		return err
	}
	for _, word := range [...]string{"true", "false", "null"} {
		if strings.HasPrefix(p.s[p.i:], word) {
			p.i += len(word)
			return nil
		}
	}
	return errSyntax
}

// texts reads an array of at most limit strings.
func (p *scanner) texts(limit int) ([]string, error) {
	if !p.next('[') {
		return nil, errType
	}
	if p.next(']') {
		return nil, nil
	}
	out := make([]string, 0, 4)
	for {
		s, err := p.text()
		if err != nil {
			return nil, err
		}
		if out = append(out, s); len(out) > limit {
			return nil, errMembers
		}
		if p.next(']') {
			return out, nil
		}
		if !p.next(',') {
			return nil, errSyntax
		}
	}
}

// CheckJSON reports whether doc is one strict JSON value.
func CheckJSON(doc []byte) error {
	p := scanner{s: string(doc)}
	if err := p.skip(0); err != nil {
		return err
	}
	return p.end()
}
