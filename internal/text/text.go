// Package text judges and writes texts that clients choose: what of them may be shown, kept and compared, and how they stand in JSON.
// It holds no state. Everything above it may call it.
package text

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// IsName reports whether s is 1 to 255 printable ASCII characters without space, quote and backslash: NQCHAR of RFC 6749 appendix A.
func IsName(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

const maxName = 255 // bytes

// MaxText bounds what is kept of a string that a client chose.
const MaxText = 256

// PlainText reports whether s is valid UTF-8 without control and bidirectional characters.
func PlainText(s string) bool {
	for i := 0; i < len(s); {
		if c := s[i]; c >= 0x20 && c < 0x7f {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || !shown(r) {
			return false
		}
		i += n
	}
	return true
}

// shown is false for what a reader of a log does not see, or sees elsewhere than where it stands. The two joiners are taken:
// Persian, Sinhala and emoji are not written without them.
func shown(r rune) bool {
	return r == ' ' || r == '\u200c' || r == '\u200d' || unicode.IsGraphic(r) && !unicode.Is(unicode.Bidi_Control, r) && r != '\u2028' && r != '\u2029'
}

// CleanText makes a client's string fit for records and logs: at most 256 bytes of valid UTF-8, what cannot be shown
// escaped.
func CleanText(s string) string {
	if len(s) <= MaxText && PlainText(s) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		piece := string(r)
		if r == utf8.RuneError || !shown(r) {
			piece = strings.Trim(strconv.QuoteRuneToASCII(r), "'")
		}
		if b.Len()+len(piece) > MaxText {
			break
		}
		b.WriteString(piece)
	}
	return b.String()
}

// SameResource reports whether two audiences name the same resource: a URL of scheme and host alone is the same with a slash
// behind it (RFC 3986 §6.2.3). Apart from that they are compared byte for byte. It is for what a client asks for: the token says it
// as it is configured, and validators compare aud as text (RFC 7519 §2).
func SameResource(a, b string) bool { return a == b || bareHost(a) == bareHost(b) }

// Resources is what of list is allowed, in the order of list, each once and as allowed writes it.
func Resources(list, allowed []string) (out []string) {
	for _, a := range list {
		at := slices.IndexFunc(allowed, func(x string) bool { return SameResource(x, a) })
		if at >= 0 && !slices.Contains(out, allowed[at]) {
			out = append(out, allowed[at])
		}
	}
	return out
}

// bareHost is a URL without the slash that is all of its path.
func bareHost(a string) string {
	rest, ok := strings.CutPrefix(a, "https://")
	if !ok {
		rest, ok = strings.CutPrefix(a, "http://")
	}
	if ok && strings.IndexAny(rest, "/?#") == len(rest)-1 && strings.HasSuffix(rest, "/") {
		return a[:len(a)-1]
	}
	return a
}

// AppendJSON appends s as a JSON string, as encoding/json writes it.
func AppendJSON(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			q, err := json.Marshal(s)
			if err != nil {
				q = []byte(`""`)
			}
			return append(b, q...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
