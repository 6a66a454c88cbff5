package text

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxText bounds what is kept of a string that a client chose.
const MaxText = 256

// plainText reports whether s is valid UTF-8 without control and bidirectional characters.
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

// cleanText makes a client's string fit for records and logs: at most 256 bytes of valid UTF-8, what can not be shown
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
