"""With what status a command ends.

0    everything was done
1    it could not be done; a sentence on standard error says what to change
2    the command line is wrong
3    done, but some items were bad; the output names them
130  interrupted; the same command goes on where it stopped (143 where SIGTERM ended it)
"""

from typing import Final

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
DONE_WITHOUT_SOME: Final = 3
INTERRUPTED: Final = 130
TERMINATED: Final = 143

MEANINGS: Final = (
    "exit status: 0 done; 1 it could not be done, and a sentence says why; 2 a wrong command line; "
    "3 done, but for items that could not be used; 130 or 143 interrupted"
)
