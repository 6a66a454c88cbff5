// Pack: a compact form, for records that are written at each login or refresh.

package record

import (
	"encoding/binary"
	"encoding/json"
)

// packed begins a record in the compact form. JSON begins with a brace.
const packed = 1

// Pack writes the members of a record, or reads them, in the order in which a form's Pack names them, which is the form: a member
// more, fewer or elsewhere makes another one, and every record that was written unreadable. What a later version adds goes into
// ext, or under another first byte. Numbers are varints; texts and lists begin with their lengths.
type Pack struct {
	writes bool
	b      []byte
	text   string // all that is read, so that texts share its memory
	at     int
	bad    bool
}

func (p *Pack) write(f func(*Pack)) []byte {
	p.writes, p.b = true, append(make([]byte, 0, 512), packed)
	f(p)
	return p.b
}

// read reports whether data is exactly what f names.
func (p *Pack) read(data []byte, f func(*Pack)) bool {
	p.b, p.text, p.at = data, string(data), 1
	f(p)
	return !p.bad && p.at == len(data)
}

// Int is a number.
func (p *Pack) Int(v *int64) {
	if p.writes {
		p.b = binary.AppendVarint(p.b, *v)
		return
	}
	n, w := binary.Varint(p.b[p.at:])
	if w <= 0 {
		p.fail()
		return
	}
	*v, p.at = n, p.at+w
}

// Uint32 is a number without a sign.
func (p *Pack) Uint32(v *uint32) {
	n := int64(*v)
	p.Int(&n)
	*v = uint32(n)
	p.bad = p.bad || n != int64(*v)
}

// Bool is yes or no.
func (p *Pack) Bool(v *bool) {
	n := int64(0)
	if *v {
		n = 1
	}
	p.Int(&n)
	*v = n == 1
	p.bad = p.bad || n>>1 != 0
}

// Fixed is bytes whose number never changes.
func (p *Pack) Fixed(v []byte) {
	switch {
	case p.writes:
		p.b = append(p.b, v...)
	case len(p.b)-p.at < len(v):
		p.fail()
	default:
		p.at += copy(v, p.b[p.at:])
	}
}

// Text is a text.
func (p *Pack) Text(v *string) {
	if p.writes {
		p.b = append(binary.AppendUvarint(p.b, uint64(len(*v))), *v...)
		return
	}
	n := p.count()
	*v = p.text[p.at : p.at+n]
	p.at += n
}

// Bytes is a text that is none. An empty one reads back as nil.
func (p *Pack) Bytes(v *[]byte) {
	t := string(*v)
	if p.Text(&t); !p.writes {
		*v = nil
		if t != "" {
			*v = []byte(t)
		}
	}
}

// Texts is a list of texts. An empty one reads back as nil.
func Texts[S ~string](p *Pack, v *[]S) {
	if p.writes {
		p.b = binary.AppendUvarint(p.b, uint64(len(*v)))
		for _, t := range *v {
			p.b = append(binary.AppendUvarint(p.b, uint64(len(t))), t...)
		}
		return
	}
	*v = nil
	if n := p.count(); n > 0 {
		*v = make([]S, n)
		for i := range *v {
			var t string
			p.Text(&t)
			(*v)[i] = S(t)
		}
	}
}

// JSON is a value that somebody else reads. An empty one reads back as nil.
func (p *Pack) JSON(v *json.RawMessage) {
	t := string(*v)
	if p.Text(&t); !p.writes {
		if *v = nil; t != "" {
			*v = json.RawMessage(t)
			p.bad = p.bad || !json.Valid(*v)
		}
	}
}

// Ext is what a newer version added.
func (p *Pack) Ext(e *Ext) {
	t := string(e.Ext)
	if p.Text(&t); !p.writes {
		e.Ext = Object(t)
		p.bad = p.bad || t != "" && (t[0] != '{' || !json.Valid([]byte(t)))
	}
}

// count reads a length, which what is left can hold.
func (p *Pack) count() int {
	n, w := binary.Uvarint(p.b[p.at:])
	if w <= 0 || n > uint64(len(p.b)-p.at-w) {
		p.fail()
		return 0
	}
	p.at += w
	return int(n)
}

func (p *Pack) fail() { p.bad, p.at = true, len(p.b) }
