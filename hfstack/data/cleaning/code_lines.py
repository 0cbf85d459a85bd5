"""List the patterns by which a line is judged to be code, by language.

Lines are judged without their indentation. Each alternative has a line of its own, so that one can
be found, changed and tried by itself; their order means nothing.
"""

import re

# hardly possible in prose
SURE_LINE = re.compile(
    r"""
    # C, scripts, PHP, Rust
      \#\s*(?:include\s*[<"]|define\s+\w|ifn?def\s+\w|if\s+(?:defined|!|\w+$)|endif\b
        |pragma\s|undef\s)
    | \#!\s*/
    | <\?php\b
    | \#!?\[\w.*\]$

    # imports: Python, Java
    | from\s+[\w.]+\s+import\s+[\w(*]
    | import\s+[\w.*]+\s*;\s*$
    | import\s+[\w.]+\s+as\s+\w+\s*$
    | import\s+[a-z_][\w.]*(?:\s*,\s*[\w.]+)*\s*(?:\#.*)?$

    # imports: JavaScript
    | (?:import|export)\s.*\sfrom\s+["'].*["'];?$
    | import\s*["'({*]
    | export\s*[{*]

    # imports: Rust, PHP, C#, C++, Go, Java
    | (?:pub\s+)?use\s+[\w:]+(?:::|;).*$
    | using\s+[\w.:=<>, ]+;$
    | package\s+[\w.]+;?$

    # imports: Lua, Node
    | (?:local|const|let|var)\s.*=\s*require\b
    | (?:module\.)?exports[.\s]\S* \s*=

    # imports and types: Haskell, batch files, Ruby
    | import\s+(?:qualified\s+)?[A-Z]\w*(?:\.\w+)*(?:\s+(?:as|hiding)\s.*|\s*\(.*)?$
    | @echo\s+off$
    | require(?:_relative)?\s+['"]
    | class\s+[A-Z]\w*\s*<\s*[A-Z][\w:]*$
    | module\s+[\w.]+(?:\s*\(.*)?\s+where$
    | [a-z]\w*'?\s+::\s+\S.*->.*

    # Lisp, diffs, LaTeX
    | \((?:ns|defn|defun|define|def)\s.*
    | @@\s-\d+(?:,\d+)?\s\+\d+(?:,\d+)?\s@@.*
    | diff\s--git\s.*
    | \\(?:documentclass|usepackage)\b.*

    # definitions: Python
    | (?:async\s+)?def\s+\w+\s*[(\[:]
    | class\s+\w+\s*(?:\(.*)?:\s*(?:\#.*)?$

    # definitions: languages with braces
    | (?:export\s+)?(?:default\s+)?(?:abstract\s+)?class\s+\w+[^.;]*\{?$(?<=\{)
    | (?:pub(?:\(\w+\))?\s+)?(?:unsafe\s+|async\s+|const\s+)*fn\s+\w+\s*[<(]
    | func\s+(?:\([^()]*\)\s*)?\w+\s*[\[(]
    | (?:export\s+|default\s+|async\s+)*function\b\s*\*?\s*\w*\s*\(
    | (?:export\s+)?(?:const|let|var|val)\s+(?:mut\s+)?[\w{\[][^=]*=\s*\S
    | (?:public|private|protected|static|final|inline|extern|virtual|constexpr|unsigned|typedef
        |struct|enum|union|interface|impl|trait|namespace|mod)\b[^.?!]*[({;]$
    | template\s*<
    | \w+\s*\(\)\s*\{
    | local\s+\w+\s*=
    | export\s+\w+=
    | function\s+(?:\[?[\w, ]+\]?\s*=\s*)?\w+\(.*\)$

    # definitions: C, C++, Cython
    | (?:[\w:]+(?:<[^<>]*>)?[\s*&]+)+[\w:~]+\s*\([^.?!]*\)\s*(?:const\s*)?[{;]$
    | (?:const\s+)?(?:int|char|float|double|bool|long|size_t|auto|std::[\w:<>, ]+)\b[\s*&]+\w+.*;$
    | cdef\s.*
    | cpdef\s.*
    | ctypedef\s.*
    | (?:from\s+[\w.]+\s+)?cimport\s.*

    # definitions: Fortran
    | (?i:(?:end\s*|pure\s+|recursive\s+|elemental\s+)*(?:subroutine|function|program|module)\s+\w+
        (?:\s*\(.*)?(?:\s+(?:result|bind)\s*\(.*)?$(?<=[\w)])|implicit\s+none
        |end\s*(?:do|if|type|interface)$
        |(?:integer|real|logical|complex|character|double\s+precision)\b.*(?:::|\(|[\w)],).*)

    # statements: languages with braces, Python
    | (?:if|while|for|switch|catch|else\s+if)\s*\(.*\)\s*\{?$(?<=[){])
    | \}\s*(?:else|catch|finally)\b.*
    | (?:if|elif|while|for|with|except)\s[^?!]*[\w)\]"']:\s*(?:\#.*)?$(?<!example:)
    | (?:try|else|finally):$

    # statements: shell
    | if\s+!?\s*\[\[?\s
    | (?:then|fi|done|esac)$
    | (?:for|while|until)\s.*;\s*do$
    | set\s+-[a-z]+

    # statements: calls, returns, decorators, lines that end in ; or {
    | (?:return|throw|break|continue|yield)\b[^.?!]*;$
    | return\s+[\w.]+[(\[{].*
    | raise\s+\w+(?:\(.*)?$
    | (?:self|this|cls)\.\w+.*[=(;].*
    | @\w[\w.]*(?:\(.*)?$
    | .*\w\(.*\);$
    | .*(?:\)\s*\{|=>\s*\{?|\{\{?|\w\[\w+\]\s*=.*;|=\s[^.?!]*;)$

    # statements: shell, Dockerfiles
    | .*\$\{\w
    | .*"\$\w
    | .*\$\(\w+\s
    | FROM\s+[\w./-]+(?::[\w.-]+)(?:\s+AS\s+\w+)?$
    | (?:RUN|COPY|CMD|ENTRYPOINT|WORKDIR|ENV)\s+\S.*[\\\]/=].*

    # statements: CMake, PowerShell, text that a shell reads up to a word
    | (?i:cmake_minimum_required|add_(?:executable|library)|target_link_libraries|find_package)\s*\(
    | (?:Get|Set|New|Write|Remove|Add|Import|Export|Invoke|Start|Stop|Test)-[A-Z]\w+(?:\s.*)?$
    | \$[A-Za-z_]\w*\s*=\s*["'@(\[].*
    | \w.*<<-?\s*["']?[A-Z]\w*["']?(?:\s*>\s*\S+)?$

    # statements: Jinja, ERB
    | \{%-?\s*(?:for|if|elif|else|end\w+|block|extends|include|set|macro|import|from)\b.*%\}.*
    | <%[=-]?\s.*%>.*

    # SQL
    | SELECT\s+[\w."`*(\[].*[^.?!]$
    | (?i:select\b.+\bfrom\s+[\w."`]+|insert\s+into\s+\w|create\s+(?:or\s+replace\s+|unique\s+
        |temp(?:orary)?\s+)*(?:table|index|view|function|trigger)\s+\w|alter\s+table\s+\w
        |drop\s+(?:table|index|view)\s|delete\s+from\s+\w|update\s+\w+\s+set\s)
    """,
    re.VERBOSE,
)

# possible in prose, one line at a time: "x = 3", "print(x)", a line that ends in a brace
LIKELY_LINE = re.compile(
    r"""
    # assignments and calls
      [\w.$@*&\[\]"'()>:,<-]{1,80}(?:\s+[\w.$*&\[\]<>:,]{1,80}){0,3}\s*
        (?:[-+*/|&%^?.]|:|<<|>>|\*\*|//|\?\?)?=(?![=>])\s*\S?
    | [\w.:$>-]+!?\((?:[^.?!].*)?$

    # ends of brackets, literals, lists, names alone
    | [\])}>]+[\w.()]*[;,:]?.{0,30}$
    | \{.*
    | .*(?:[({\[\\|&=+]|->|=>|;|\)\??,?|\)\s*->\s*.+:)$
    | ["'rfb]{1,3}.*["']\s*[,:)\]].*$
    | ["'].*["']$
    | \w+\s*:\s*[\w.]+(?:\[.*\])?(?:\s*\|.*)?$
    | \w+\s+as\s+\w+,?$
    | \*{0,2}[\w.]+\s*,$
    | [-+\d][-+\d.,\sxXa-fA-F]*,?$
    | [\w.]+$
    | \w+(?:\[.*\]|\.\w+)+,?$
    | [\w$]+\s*\{$

    # keywords: Python, shell, Lua
    | (?:pass|break|continue|else|do|begin|end)\b;?$
    | (?:return|assert|del|yield|not|and|or|if|in)\b.*
    | [\w"']+\s*:\s*[\w"'\[{(].*,$
    | (?:echo|cd|sudo|grep|sed|awk|rm|cp|mv|mkdir|curl|exit|source)\s\S.*

    # SQL
    | (?i:from|where|and|or|on|group\s+by|order\s+by|having|limit|values|set|(?:left\s+)?join)
        \s.*[=<>(,;].*
    | (?i:from|join|group\s+by|order\s+by|limit|set)\s+[\w., ]+;?$
    | (?i:select)\s.*

    # C, C++, CSS, Fortran
    | .*\w(?:::|->)\w.*
    | .*[\s(][*&]\w+.*[,;(]$
    | (?:const\s+)?[\w:]+[*&]+\s+\w+.*
    | [\w-]+\s*:\s*[^.?!]+;$
    | (?i:call|use|type|intent|allocate|print)\b\s*[\w('"*].*

    # diffs, LaTeX, batch files, Lisp
    | [-+][^-+].*
    | @@.*
    | \\\w+.*
    | (?i:set|if|call|goto|del|copy)\s+\S.*
    | \(.*
    | go\s.*=.*

    # assembly, columns of SQL
    | (?:mov|push|pop|add|sub|call|ret|jmp|int|lea|xor|cmp|global|section)\b\s+[\w.\[%$].*
    | \w+\s+(?i:int|integer|bigint|serial|text|varchar|boolean|timestamp|date|numeric)\b.*
    """,
    re.VERBOSE,
)
